// What the official `openai` client for Node makes of a server. The cases are those of openai_python.py.

import OpenAI from "openai";
import { VERSION } from "openai/version";
import { KEY, MODEL, MODEL_ID, SCRIPTED, TOOLS, freed, it, ok, refused, run, same } from "./suite.mjs";

const client = new OpenAI({ maxRetries: 0, timeout: 60_000 });
const user = (content) => [{ role: "user", content }];
const FRANCE = "What is the capital of France?";
const WEATHER = {
    type: "function",
    function: {
        name: "get_weather",
        description: "The weather of a city now.",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
};

function ask(words = FRANCE, more = {}) {
    const fields = { model: MODEL, messages: user(words), seed: 7, temperature: 0, max_tokens: 48 };
    return client.chat.completions.create({ ...fields, ...more });
}

const text = (answer) => answer.choices[0].message.content;

async function gather(stream) {
    const chunks = [];
    for await (const chunk of await stream) chunks.push(chunk);
    return chunks;
}

function joined(chunks, index = 0) {
    const choices = chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.index === index);
    return choices.map((choice) => choice.delta.content ?? "").join("");
}

const spelled = (tokens) => Buffer.from(tokens.flatMap((token) => token.bytes)).toString();

// ---- answers ----

it("a whole answer reads", async () => {
    const { data: answer, request_id } = await ask().withResponse();
    ok(text(answer).includes("Paris"));
    same(answer.choices[0].finish_reason, "stop");
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    ok(request_id.startsWith("req_") && answer._request_id === request_id);
});

it("a stream joined is the whole answer", async () => {
    const chunks = await gather(ask(FRANCE, { stream: true }));
    same(joined(chunks), text(await ask()));
    same(chunks[0].choices[0].delta.role, "assistant");
    ok(chunks.every((chunk) => chunk.usage === undefined));
});

it("a stream tells its usage in a last chunk when asked", async () => {
    const chunks = await gather(ask(FRANCE, { stream: true, stream_options: { include_usage: true } }));
    same(chunks.at(-1).choices, []);
    same(chunks.at(-1).usage, (await ask()).usage);
});

it("a stop string ends the answer and is no part of it", async () => {
    const before = text(await ask()).split("Paris")[0];
    same(text(await ask(FRANCE, { stop: ["Paris"] })), before);
    same(joined(await gather(ask(FRANCE, { stop: "Paris", stream: true }))), before);
});

it("the same seed gives the same text", async () => {
    const more = { seed: 3, temperature: 1.5 };
    same(text(await ask(FRANCE, more)), text(await ask(FRANCE, more)));
});

it("several choices are what each seed gives alone", async () => {
    const alone = [];
    for (const seed of [11, 12, 13]) alone.push(text(await ask(FRANCE, { seed, temperature: 1.5 })));
    const answer = await ask(FRANCE, { seed: 11, temperature: 1.5, n: 3 });
    same(answer.choices.map((choice) => choice.index), [0, 1, 2]);
    same(answer.choices.map((choice) => choice.message.content), alone);
});

it("several choices stream side by side", async () => {
    const more = { seed: 11, temperature: 1.5, n: 2 };
    const whole = await ask(FRANCE, more);
    const chunks = await gather(ask(FRANCE, { ...more, stream: true, stream_options: { include_usage: true } }));
    same([0, 1].map((index) => joined(chunks, index)), whole.choices.map((choice) => choice.message.content));
    same(chunks.at(-1).usage, whole.usage);
});

it("every token has its probability when asked, streamed too", async () => {
    const answer = await ask(FRANCE, { logprobs: true, top_logprobs: 2 });
    const tokens = answer.choices[0].logprobs.content;
    same(spelled(tokens), text(answer));
    ok(tokens.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
    const chunks = await gather(ask(FRANCE, { logprobs: true, stream: true }));
    const told = chunks.flatMap((chunk) => chunk.choices).flatMap((choice) => choice.logprobs?.content ?? []);
    same(spelled(told), joined(chunks));
});

it("max_tokens cuts the answer", async () => {
    for (const field of ["max_tokens", "max_completion_tokens"]) {
        const answer = await ask(FRANCE, { max_tokens: undefined, [field]: 2 });
        same([answer.choices[0].finish_reason, answer.usage.completion_tokens], ["length", 2]);
    }
});

const LETTERS = "naïve 東京 👩‍👩‍👧 \u2028\"\\";

it("letters of all kinds come through", async () => {
    same(text(await ask(`Repeat: ${LETTERS}`)), LETTERS);
    same(joined(await gather(ask(`Repeat: ${LETTERS}`, { stream: true }))), LETTERS);
}, SCRIPTED);

it("a very long line comes in one piece", async () => {
    same(text(await ask("Say one long line.", { max_tokens: 200 })), "x".repeat(150_000));
    const chunks = await gather(ask("Say one long line.", { max_tokens: 200, stream: true }));
    same(joined(chunks), "x".repeat(150_000));
}, SCRIPTED);

it("an answer without words is an answer", async () => {
    same(text(await ask("Say nothing.")), "");
    same(joined(await gather(ask("Say nothing.", { stream: true }))), "");
}, SCRIPTED);

it("thoughts are told apart", async () => {
    const { message } = (await ask("Think first.")).choices[0];
    same([message.content, message.reasoning_content], ["Paris", "France, so"]);
}, SCRIPTED);

// ---- conversations ----

it("content may come in parts", async () => {
    const parts = ["What is the capital ", "of France?"].map((text) => ({ type: "text", text }));
    same(text(await ask("", { messages: user(parts) })), text(await ask()));
});

it("developers and systems set the scene, and speakers have names", async () => {
    const scene = [{ role: "developer", content: "Be short." }, { role: "system", content: "Be kind." }];
    const answer = await ask("", { messages: [...scene, { role: "user", name: "al", content: "Who speaks?" }] });
    if (SCRIPTED) same(text(answer), "system system user(al)");
});

it("a turn may be empty", async () => {
    ok((await ask("", { messages: [...user("Hello"), { role: "assistant", content: "" }, ...user(FRANCE)] })).choices);
});

// ---- tools ----

const weather = (words = "What is the weather in Paris?", more = {}) => ask(words, { tools: [WEATHER], ...more });

it("tools are refused by name where the model knows none", async () => {
    same((await refused(OpenAI.BadRequestError, () => weather())).param, "tools");
}, TOOLS === "refused");

it("a call reads and its result goes back", async () => {
    const first = (await weather()).choices[0];
    same(first.finish_reason, "tool_calls");
    const [call] = first.message.tool_calls;
    same([call.type, call.function.name, JSON.parse(call.function.arguments)], ["function", "get_weather", { city: "Paris" }]);
    const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
    const messages = [...user("What is the weather in Paris?"), first.message, result];
    const last = (await weather("", { messages })).choices[0];
    same([last.finish_reason, last.message.content], ["stop", "It is sunny."]);
}, TOOLS === "calls");

it("the client's own loop runs tools, in one piece and streamed", async () => {
    for (const stream of [false, true]) {
        const tool = { ...WEATHER, function: { ...WEATHER.function, parse: JSON.parse, function: ({ city }) => (city === "Paris" ? "sunny" : "?") } };
        const runner = client.chat.completions.runTools({
            model: MODEL, messages: user("What is the weather in Paris?"), temperature: 0, max_tokens: 48, tools: [tool], stream,
        });
        same(await runner.finalContent(), "It is sunny.");
    }
}, TOOLS === "calls");

it("no tool is called when none is wanted", async () => {
    const choice = (await weather(undefined, { tool_choice: "none" })).choices[0];
    same([choice.finish_reason, choice.message.tool_calls ?? []], ["stop", []]);
}, TOOLS === "calls");

it("a forced call is refused by name", async () => {
    for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
        const error = await refused(OpenAI.BadRequestError, () => weather(undefined, { tool_choice }));
        same([error.param, error.code], ["tool_choice", "unsupported_parameter"]);
    }
});

// ---- fields, keys and models ----

it("a field that nobody knows is let through and named", async () => {
    const { response } = await ask(FRANCE, { enable_warp: true }).withResponse();
    same(response.headers.get("x-ignored-fields"), "enable_warp");
});

it("what cannot be done is refused by name", async () => {
    const check = async (fields, param) =>
        same((await refused(OpenAI.BadRequestError, () => ask(FRANCE, fields))).param, param);
    await check({ response_format: { type: "xml" } }, "response_format.type");
    await check({ temperature: 9 }, "temperature");
    await check({ n: 0 }, "n");
    await check({ messages: [] }, "messages");
});

it("a prompt that is too long says so", async () => {
    for (const stream of [false, true]) {
        const error = await refused(OpenAI.BadRequestError, () => ask("word ".repeat(4000), { stream }));
        same([error.code, error.param], ["context_length_exceeded", "messages"]);
    }
});

it("a key for idempotency is taken", async () => {
    const fields = { model: MODEL, messages: user("Hello"), max_tokens: 8 };
    ok((await client.chat.completions.create(fields, { idempotencyKey: "node-1" })).choices);
});

it("a wrong key stays out, and so does no key", async () => {
    const stranger = client.withOptions({ apiKey: "nobody" });
    same((await refused(OpenAI.AuthenticationError, () => stranger.models.list())).code, "invalid_api_key");
    const nobody = () => client.models.list({ headers: { Authorization: null } });
    same((await refused(OpenAI.AuthenticationError, nobody)).code, "missing_api_key");
    ok(KEY);
});

it("models are listed and found by either name", async () => {
    const ids = (await client.models.list()).data.map((model) => model.id);
    same(ids.filter((id) => id === MODEL).length, 1);
    for (const name of [MODEL, MODEL_ID]) same((await client.models.retrieve(name)).id, name);
    const error = await refused(OpenAI.NotFoundError, () => ask(FRANCE, { model: "gpt-9" }));
    same([error.code, error.param], ["model_not_found", "model"]);
    ok(error.requestID.startsWith("req_"));
});

// ---- trouble ----

it("an error after the first word is the client's error", async () => {
    const chunks = [];
    const error = await refused(OpenAI.APIError, async () => {
        for await (const chunk of await ask("Break off.", { stream: true })) chunks.push(chunk);
    });
    same(joined(chunks), "one two ");
    ok(error.code);
}, SCRIPTED);

it("what was charged is not tried again", async () => {
    const tries = [];
    const counting = (url, init) => {
        tries.push(url);
        return fetch(url, init);
    };
    const eager = client.withOptions({ maxRetries: 2, fetch: counting });
    const act = () => eager.chat.completions.create({ model: MODEL, messages: user("Break off.") });
    await refused(OpenAI.InternalServerError, act);
    same(tries.length, 1);
}, SCRIPTED);

it("who breaks off frees the provider", async () => {
    for (let round = 0; round < 8; round += 1) {
        const bias = SCRIPTED ? {} : { logit_bias: { 1: -100 } };
        for await (const chunk of await ask("Never end.", { stream: true, max_tokens: 1000, ...bias })) {
            if (chunk.choices[0]?.delta.content) break;
        }
    }
    await freed(async () => {
        for await (const _ of await ask(FRANCE, { stream: true })) break;
    });
    ok(text(await ask()).includes("Paris"));
});

it("eight at once get what each would get alone", async () => {
    const one = async (seed) => text(await ask(FRANCE, { seed, temperature: 1.5, max_tokens: 16 }));
    const seeds = [...Array(8).keys()];
    const alone = [];
    for (const seed of seeds) alone.push(await one(seed));
    same(await Promise.all(seeds.map(one)), alone);
});

await run(`openai ${VERSION}`);
