// What Vercel's `ai` with `@ai-sdk/openai-compatible` makes of a server. It is stricter than OpenAI's own clients about
// the shape of chunks and errors, so each case is one way to trip over those.

import { createRequire } from "node:module";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { BASE, KEY, MODEL, MODEL_ID, SCRIPTED, TOOLS, freed, it, ok, refused, run, same } from "./suite.mjs";

const of = (apiKey) => createOpenAICompatible({ name: "ram", baseURL: BASE, apiKey, includeUsage: true });
const model = of(KEY).chatModel(MODEL);
const FRANCE = "What is the capital of France?";
const usual = { model, prompt: FRANCE, temperature: 0, seed: 7, maxOutputTokens: 48, maxRetries: 0 };
const quiet = { onError: () => {} }; // errors are looked at here, not printed there

const weather = tool({
    description: "The weather of a city now.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => (city === "Paris" ? "sunny" : "unknown"),
});
const withTools = { ...usual, prompt: "What is the weather in Paris?", tools: { get_weather: weather } };

it("text is generated and counted", async () => {
    const { text, usage, finishReason, response } = await generateText(usual);
    ok(text.includes("Paris"));
    same([finishReason, usage.totalTokens], ["stop", usage.inputTokens + usage.outputTokens]);
    ok(response.headers["x-request-id"].startsWith("req_"));
});

it("streamed text joined is the text, with its usage", async () => {
    const whole = await generateText(usual);
    const stream = streamText(usual);
    let text = "";
    for await (const part of stream.textStream) text += part;
    same(text, whole.text);
    same((await stream.usage).totalTokens, whole.usage.totalTokens);
    same(await stream.finishReason, "stop");
});

it("a stop string ends the text", async () => {
    const { text } = await generateText(usual);
    same((await generateText({ ...usual, stopSequences: ["Paris"] })).text, text.split("Paris")[0]);
});

it("a cut text says so", async () => {
    const { finishReason, usage } = await generateText({ ...usual, maxOutputTokens: 2 });
    same([finishReason, usage.outputTokens], ["length", 2]);
});

it("a system prompt and earlier turns are taken", async () => {
    const { prompt: _, ...rest } = usual;
    const messages = [
        { role: "user", content: FRANCE },
        { role: "assistant", content: "Paris." },
        { role: "user", content: [{ type: "text", text: "Who speaks?" }] },
    ];
    const { text } = await generateText({ ...rest, system: "Be short.", messages });
    if (SCRIPTED) same(text, "system user assistant user");
});

it("thoughts are told apart", async () => {
    const { text, reasoningText } = await generateText({ ...usual, prompt: "Think first." });
    same([text, reasoningText], ["Paris", "France, so"]);
    const stream = streamText({ ...usual, prompt: "Think first." });
    same([await stream.text, await stream.reasoningText], ["Paris", "France, so"]);
}, SCRIPTED);

it("letters of all kinds and very long lines come through", async () => {
    const letters = "naïve 東京 👩‍👩‍👧 \u2028\"\\";
    same(await streamText({ ...usual, prompt: `Repeat: ${letters}` }).text, letters);
    const line = { ...usual, prompt: "Say one long line.", maxOutputTokens: 200 };
    same((await streamText(line).text).length, 150_000);
}, SCRIPTED);

it("tools are called, run and answered in a loop", async () => {
    const { text, steps } = await generateText({ ...withTools, stopWhen: stepCountIs(3) });
    same([text, steps.length], ["It is sunny.", 2]);
    same(steps[0].finishReason, "tool-calls");
    same(steps[0].toolCalls.map((call) => [call.toolName, call.input]), [["get_weather", { city: "Paris" }]]);
}, TOOLS === "calls");

it("tools are called, run and answered in a streamed loop", async () => {
    const stream = streamText({ ...withTools, stopWhen: stepCountIs(3) });
    const parts = [];
    for await (const part of stream.fullStream) parts.push(part.type);
    ok(parts.includes("tool-call") && parts.includes("tool-result"), parts.join());
    same([await stream.text, (await stream.steps).length], ["It is sunny.", 2]);
}, TOOLS === "calls");

it("no tool is called when none is wanted", async () => {
    const { text, toolCalls } = await generateText({ ...withTools, toolChoice: "none" });
    same(toolCalls, []);
    ok(text);
}, TOOLS === "calls");

it("tools are refused where the model knows none", async () => {
    const error = await refused(APICallError, () => generateText(withTools));
    same([error.statusCode, error.data.error.param, error.isRetryable], [400, "tools", false]);
}, TOOLS === "refused");

it("a forced call is refused by name", async () => {
    const error = await refused(APICallError, () => generateText({ ...withTools, toolChoice: "required" }));
    same([error.statusCode, error.data.error.param], [400, "tool_choice"]);
});

it("errors keep their message and their status", async () => {
    const stranger = { ...usual, model: of("nobody").chatModel(MODEL) };
    const wrong = await refused(APICallError, () => generateText(stranger));
    same([wrong.statusCode, wrong.message], [401, wrong.data.error.message]);
    const unknown = await refused(APICallError, () => generateText({ ...usual, model: of(KEY).chatModel("gpt-9") }));
    same([unknown.statusCode, unknown.data.error.code], [404, "model_not_found"]);
    const long = await refused(APICallError, () => generateText({ ...usual, prompt: "word ".repeat(4000) }));
    same([long.statusCode, long.data.error.code], [400, "context_length_exceeded"]);
});

it("an id with a slash is a model", async () => {
    ok((await generateText({ ...usual, model: of(KEY).chatModel(MODEL_ID) })).text.includes("Paris"));
});

it("an error after the first word is an error of the stream", async () => {
    const stream = streamText({ ...usual, ...quiet, prompt: "Break off." });
    let text = "";
    const errors = [];
    for await (const part of stream.fullStream) {
        if (part.type === "text-delta") text += part.text;
        if (part.type === "error") errors.push(part.error);
    }
    same([text, errors.length], ["one two ", 1]);
}, SCRIPTED);

it("what was charged is not tried again", async () => {
    const tries = [];
    const counting = (url, init) => {
        tries.push(url);
        return fetch(url, init);
    };
    const counted = createOpenAICompatible({ name: "ram", baseURL: BASE, apiKey: KEY, fetch: counting });
    const act = () => generateText({ ...usual, model: counted.chatModel(MODEL), prompt: "word ".repeat(4000), maxRetries: 2 });
    await refused(APICallError, act);
    same(tries.length, 1);
});

it("who aborts frees the provider", async () => {
    for (let round = 0; round < 4; round += 1) {
        const leave = new AbortController();
        const stream = streamText({
            ...usual, ...quiet, prompt: "Never end.", maxOutputTokens: 1000, abortSignal: leave.signal,
            providerOptions: SCRIPTED ? {} : { ram: { logit_bias: { 1: -100 } } },
        });
        for await (const part of stream.fullStream) {
            if (part.type === "text-delta") leave.abort();
        }
    }
    await freed(async () => {
        for await (const _ of streamText(usual).textStream) break;
    });
    ok((await generateText(usual)).text.includes("Paris"));
});

it("several at once get what each would get alone", async () => {
    const one = async (seed) => (await generateText({ ...usual, seed, temperature: 1.5, maxOutputTokens: 16 })).text;
    const alone = [];
    for (const seed of [1, 2, 3, 4]) alone.push(await one(seed));
    same(await Promise.all([1, 2, 3, 4].map(one)), alone);
});

const version = createRequire(import.meta.url)("ai/package.json").version;
await run(`ai ${version}`);
