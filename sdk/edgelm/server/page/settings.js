// What is asked of the model besides the messages. An empty field leaves the choice to the model's author.

import { byId, element } from "./dom.js";

const STORED = "edgelm.settings";
const THINKING = "enable_thinking"; // the variable of chat templates

// name in the API, label, attributes of the field
const FIELDS = [
  ["temperature", "Temperature", { type: "number", min: 0, max: 2, step: 0.05, placeholder: "0 is the likeliest" }],
  ["top_p", "Top p", { type: "number", min: 0.01, max: 1, step: 0.01 }],
  ["top_k", "Top k", { type: "number", min: 0, step: 1 }],
  ["min_p", "Min p", { type: "number", min: 0, max: 1, step: 0.01 }],
  ["presence_penalty", "Presence penalty", { type: "number", min: -2, max: 2, step: 0.1 }],
  ["frequency_penalty", "Frequency penalty", { type: "number", min: -2, max: 2, step: 0.1 }],
  ["max_completion_tokens", "Longest answer", { type: "number", min: 1, step: 1, placeholder: "in tokens" }],
  ["seed", "Seed", { type: "number", min: 0, step: 1, placeholder: "a fresh one" }],
  ["stop", "Stop before (one text a line)", { rows: 2 }],
];

export class Settings {
  constructor() {
    const stored = JSON.parse(localStorage.getItem(STORED) ?? "{}");
    this.values = stored.values ?? {};
    this.probabilities = stored.probabilities ?? true;
    this.thinking = stored.thinking ?? true;
    this.switchesThinking = false; // whether the model can be told
    this.model = stored.model ?? null;
    this.fields = new Map(FIELDS.map(([name, label, attributes]) => [name, this.field(name, label, attributes)]));
    byId("with-probabilities").checked = this.probabilities;
    byId("with-probabilities").addEventListener("change", (event) => {
      this.probabilities = event.target.checked;
      this.store();
    });
    byId("with-thinking").checked = this.thinking;
    byId("with-thinking").addEventListener("change", (event) => {
      this.thinking = event.target.checked;
      this.store();
    });
    byId("reset-settings").addEventListener("click", () => this.reset());
  }

  field(name, label, attributes) {
    const input = element(attributes.rows ? "textarea" : "input", {
      placeholder: "the model’s own", ...attributes, value: this.values[name] ?? "",
      on: { input: () => this.read(name, input) },
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
    for (const input of this.fields.values()) input.value = "";
    this.store();
  }

  choose(model) {
    this.model = model;
    this.store();
  }

  /** Show the switch for thinking where the template of the chosen model reads it. */
  offerThinking(variables) {
    this.switchesThinking = variables.includes(THINKING);
    byId("thinking-switch").hidden = !this.switchesThinking;
  }

  store() {
    const { values, probabilities, thinking, model } = this;
    localStorage.setItem(STORED, JSON.stringify({ values, probabilities, thinking, model }));
  }

  /** The fields of a request. */
  request() {
    const fields = Object.entries(this.values).map(([name, text]) =>
      [name, name === "stop" ? text.split("\n").filter(Boolean) : Number(text)]);
    const asked = this.probabilities ? { logprobs: true, top_logprobs: 5 } : {};
    const told = this.switchesThinking ? { chat_template_kwargs: { [THINKING]: this.thinking } } : {};
    return { ...Object.fromEntries(fields), ...asked, ...told };
  }
}
