// What is asked of the model besides the messages. An empty field leaves the choice to the model's author.

import { byId, element } from "./dom.js";
import { forEver } from "./storage.js";

const STORED = "edgelm.settings";
// Variables by which chat templates are told whether to think, and what most take where nothing is said: Qwen3, SmolLM3
// and GLM think then, Granite, DeepSeek and Hermes do not. How much: gpt-oss.
const SWITCHES = { enable_thinking: true, thinking: false };
const EFFORT = "reasoning_effort";

// name in the API, label, attributes of the field
const FIELDS = [
  ["temperature", "Temperature", { type: "number", min: 0, max: 2, step: 0.01, placeholder: "0 is the likeliest" }],
  ["top_p", "Top p", { type: "number", min: 0.001, max: 1, step: 0.001 }],
  ["top_k", "Top k", { type: "number", min: 0, step: 1 }],
  ["min_p", "Min p", { type: "number", min: 0, max: 1, step: 0.001 }],
  ["presence_penalty", "Presence penalty", { type: "number", min: -2, max: 2, step: 0.01 }],
  ["frequency_penalty", "Frequency penalty", { type: "number", min: -2, max: 2, step: 0.01 }],
  ["max_completion_tokens", "Longest answer", { type: "number", min: 1, step: 1, placeholder: "in tokens" }],
  ["seed", "Seed", { type: "number", min: 0, step: 1, placeholder: "a fresh one" }],
  ["stop", "Stop before (one text a line)", { rows: 2 }],
];

export class Settings {
  constructor() {
    this.variables = []; // of the model's template
    this.fields = new Map(FIELDS.map(([name, label, attributes]) => [name, this.field(name, label, attributes)]));
    this.model = this.load().model ?? null;
    window.addEventListener("storage", ({ key }) => key === STORED && this.load()); // another tab has changed them
    byId("settings").addEventListener("close", () => this.show()); // what could not be taken does not stay
    this.keep("with-probabilities", (control) => (this.probabilities = control.checked));
    this.keep("with-thinking", (control) => (this.thinking = control.checked));
    this.keep("effort", (control) => (this.effort = control.value));
    byId("reset-settings").addEventListener("click", () => this.reset());
  }

  /** Take what a control is set to, and store it. */
  keep(id, take) {
    byId(id).addEventListener("change", ({ target }) => {
      take(target);
      this.store();
    });
  }

  load() {
    const stored = JSON.parse(forEver.getItem(STORED) ?? "{}");
    this.values = stored.values ?? {};
    this.probabilities = stored.probabilities ?? true;
    this.thinking = stored.thinking ?? null; // null: as the model has it
    this.effort = stored.effort ?? "";
    this.show();
    return stored;
  }

  show() {
    for (const [name, input] of this.fields) input.value = this.values[name] ?? "";
    byId("with-probabilities").checked = this.probabilities;
    byId("effort").value = this.effort;
    this.offerThinking(this.variables);
  }

  field(name, label, attributes) {
    const input = element(attributes.rows ? "textarea" : "input", {
      placeholder: "the model’s own", ...attributes, on: { input: () => this.read(name, input) },
    });
    byId("sampling").append(element("label", { class: attributes.rows ? "wide" : "" }, label, input));
    return input;
  }

  read(name, input) {
    if (input.value.trim() === "" || !input.checkValidity()) delete this.values[name];
    else this.values[name] = input.value;
    this.store();
  }

  reset() {
    this.values = {};
    this.show();
    this.store();
  }

  choose(model) {
    this.model = model;
    this.store();
  }

  /** Show what the template of the chosen model can be told of thinking. */
  offerThinking(variables) {
    this.variables = variables;
    const [usual] = this.switches().map((name) => SWITCHES[name]);
    byId("thinking-switch").hidden = usual === undefined;
    byId("with-thinking").checked = this.thinking ?? usual ?? false;
    byId("effort-choice").hidden = !variables.includes(EFFORT);
  }

  switches() {
    return Object.keys(SWITCHES).filter((name) => this.variables.includes(name));
  }

  store() {
    const { values, probabilities, thinking, effort, model } = this;
    forEver.setItem(STORED, JSON.stringify({ values, probabilities, thinking, effort, model }));
  }

  /** The fields of a request. */
  request() {
    const fields = Object.entries(this.values).map(([name, text]) =>
      [name, name === "stop" ? text.split("\n").filter(Boolean) : Number(text)]);
    const asked = this.probabilities ? { logprobs: true, top_logprobs: 5 } : {};
    const told = Object.fromEntries(this.switches().map((name) => [name, byId("with-thinking").checked]));
    if (this.effort && this.variables.includes(EFFORT)) told[EFFORT] = this.effort;
    const variables = Object.keys(told).length ? { chat_template_kwargs: told } : {};
    return { ...Object.fromEntries(fields), ...asked, ...variables };
  }
}
