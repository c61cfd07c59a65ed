// Sends one message to the server's own OpenAI interface, and shows the answer as it comes.
import { byId, seconds, text } from "./draw.js";

export function wirePlayground(store, authorization) {
  let leaving = null;
  byId("stop").addEventListener("click", () => leaving?.abort());
  byId("play").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (leaving !== null || !store.now) return;
    leaving = new AbortController();
    byId("stop").hidden = false;
    text(byId("answer"), "");
    try {
      await send(store.now.model, authorization(), leaving.signal);
    } catch (error) {
      text(byId("answer-words"), error.name === "AbortError" ? "stopped" : error.message);
    } finally {
      leaving = null;
      byId("stop").hidden = true;
    }
  });
}

async function send(model, headers, signal) {
  const prompt = byId("prompt").value, began = performance.now();
  const body = { model: model.name, stream: true, max_tokens: Number(byId("tokens").value), temperature: Number(byId("temperature").value) };
  const [path, asked] = model.can_chat ? ["chat/completions", { messages: [{ role: "user", content: prompt }] }] : ["completions", { prompt }];
  const answer = await fetch(`v1/${path}`, { method: "POST", signal, headers: { "content-type": "application/json", ...headers }, body: JSON.stringify({ ...body, ...asked }) });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  let first = null, tokens = 0;
  for await (const data of events(answer.body)) {
    if (data.error) throw new Error(data.error.message);
    const choice = data.choices[0], words = choice?.delta?.content ?? choice?.text ?? "";
    if (!words) continue;
    first ??= performance.now();
    tokens += 1;
    byId("answer").append(words);
  }
  const last = performance.now(), pace = tokens > 1 ? (last - first) / 1000 / (tokens - 1) : null;
  text(byId("answer-words"), first === null ? "an empty answer" : `TTFT ${seconds((first - began) / 1000)}, ${tokens} pieces of text, one each ${seconds(pace)}, as this page saw it`);
}

// Server-sent events with data, until the last one.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}
