// Greedy tokens of a folder, from files on this disk alone: use_transformers_js.mjs PARENT NAME IDS COUNT, all in JSON.
import { readFileSync } from "node:fs";
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from "@huggingface/transformers";

const [parent, name, ids, count] = process.argv.slice(2).map((argument) => JSON.parse(argument));
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = parent;

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype: "fp32", subfolder: "" });
const output = await model.generate({
  input_ids: new Tensor("int64", BigInt64Array.from(ids.map(BigInt)), [1, ids.length]),
  attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
  max_new_tokens: count,
  do_sample: false,
});
// It does not look for the file that transformers has the template in.
const chat_template = readFileSync(`${parent}/${name}/chat_template.jinja`, "utf-8");
const messages = [{ role: "user", content: "Hello" }];
console.log(JSON.stringify({
  token_ids: Array.from(output.data).map(Number).slice(ids.length),
  encoded: tokenizer.encode("Once upon a time"),
  chat: tokenizer.apply_chat_template(messages, { chat_template, add_generation_prompt: true, tokenize: false }),
}));
