"""What the official `openai` client for Python makes of a server. Run by mod.rs, which also says what the server is.

OPENAI_BASE_URL, OPENAI_API_KEY   where it is, and a key that it takes
RAM_TEST_MODEL, RAM_TEST_MODEL_ID alias and full id of a model
RAM_TEST_SCRIPTED                 1: behind it writes the provider of scripted.rs, which does as the prompt says;
                                  0: the bundled model
RAM_TEST_TOOLS                    whether that model `calls` functions, or requests with them are `refused`

Each case is a function; it is counted, and told apart by its name when it fails.
"""

import concurrent.futures
import json
import os
import sys
import time
import traceback
import urllib.request

import openai

BASE = os.environ["OPENAI_BASE_URL"]
MODEL = os.environ["RAM_TEST_MODEL"]
MODEL_ID = os.environ["RAM_TEST_MODEL_ID"]
SCRIPTED = os.environ["RAM_TEST_SCRIPTED"] == "1"
TOOLS = os.environ["RAM_TEST_TOOLS"]

client = openai.OpenAI(max_retries=0, timeout=60)
cases = []

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def case(needs=True):
    """Adds a case, if the server is one that can show it."""

    def add(function):
        if needs:
            cases.append(function)
        return function

    return add


def user(words):
    return [{"role": "user", "content": words}]


def ask(words="What is the capital of France?", **more):
    fields = {"model": MODEL, "messages": user(words), "seed": 7, "temperature": 0, "max_tokens": 48}
    return client.chat.completions.create(**(fields | more))


def text(answer):
    return answer.choices[0].message.content


def joined(stream, index=0):
    deltas = (choice.delta for chunk in stream for choice in chunk.choices if choice.index == index)
    return "".join(delta.content or "" for delta in deltas)


def refused(error, act=ask, **more):
    try:
        act(**more)
    except error as caught:
        assert caught.request_id.startswith("req_"), caught
        return caught
    raise AssertionError(f"{error.__name__} was expected")


def same(left, right):
    assert left == right, f"{left!r} is not {right!r}"


# ---- answers ----


@case()
def a_whole_answer_reads():
    answer = ask()
    assert "Paris" in text(answer), answer
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].index == 0
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-") and answer.model == MODEL
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 0 < usage.completion_tokens


@case()
def every_answer_names_its_request():
    assert ask()._request_id.startswith("req_")


@case()
def a_stream_joined_is_the_whole_answer():
    chunks = list(ask(stream=True))
    same(joined(chunks), text(ask()))
    same(chunks[0].choices[0].delta.role, "assistant")
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    same(ends, ["stop"])
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)


@case()
def a_stream_tells_its_usage_in_a_last_chunk_when_asked():
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    same(chunks[-1].choices, [])
    same(chunks[-1].usage, ask().usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@case()
def a_stop_string_ends_the_answer_and_is_no_part_of_it():
    before, _ = text(ask()).split("Paris", 1)
    for stop in ("Paris", ["Paris", "never"]):
        same(text(ask(stop=stop)), before)
        same(joined(ask(stop=stop, stream=True)), before)


@case()
def the_same_seed_gives_the_same_text():
    same(text(ask(seed=3, temperature=1.5)), text(ask(seed=3, temperature=1.5)))


@case()
def several_choices_are_what_each_seed_gives_alone():
    alone = [text(ask(seed=seed, temperature=1.5)) for seed in (11, 12, 13)]
    answer = ask(seed=11, temperature=1.5, n=3)
    same([choice.index for choice in answer.choices], [0, 1, 2])
    same([choice.message.content for choice in answer.choices], alone)
    same(len(ask(n=2).choices), 2)


@case()
def several_choices_stream_side_by_side():
    whole = ask(seed=11, temperature=1.5, n=3)
    options = {"include_usage": True}
    chunks = list(ask(seed=11, temperature=1.5, n=3, stream=True, stream_options=options))
    same([joined(chunks, index) for index in range(3)], [choice.message.content for choice in whole.choices])
    ends = sorted(choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason)
    same(ends, [0, 1, 2])
    same(chunks[-1].usage, whole.usage)
    same(len({chunk.id for chunk in chunks}), 1)


@case()
def the_usage_of_several_choices_counts_all_of_their_words():
    one, two = ask().usage, ask(n=2).usage
    same(two.completion_tokens, 2 * one.completion_tokens)
    same(two.total_tokens, two.prompt_tokens + two.completion_tokens)


@case()
def every_token_has_its_probability_when_asked():
    answer = ask(logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    same(b"".join(bytes(token.bytes) for token in tokens).decode(), text(answer))
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    assert ask().choices[0].logprobs is None


@case()
def streamed_probabilities_spell_the_text():
    chunks = list(ask(logprobs=True, top_logprobs=1, stream=True))
    told = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    tokens = [token for logprobs in told for token in logprobs.content or []]
    same(b"".join(bytes(token.bytes) for token in tokens).decode(), joined(chunks))


@case()
def max_tokens_cuts_the_answer():
    for field in ("max_tokens", "max_completion_tokens"):
        fields = {"max_tokens": openai.omit, field: 2}
        answer = ask(**fields)
        same(answer.choices[0].finish_reason, "length")
        same(answer.usage.completion_tokens, 2)


@case()
def letters_of_all_kinds_come_through():
    answer = ask("Repeat: naïve 東京 👩‍👩‍👧 \u202eend\u0000\u2028\"\\")
    if SCRIPTED:
        same(text(answer), "naïve 東京 👩‍👩‍👧 \u202eend\u0000\u2028\"\\")
        same(joined(ask("Repeat: 👩‍👩‍👧 東京", stream=True)), "👩‍👩‍👧 東京")


@case(SCRIPTED)
def a_very_long_line_comes_in_one_piece():
    same(text(ask("Say one long line.", max_tokens=200)), "x" * 150_000)
    same(joined(ask("Say one long line.", max_tokens=200, stream=True)), "x" * 150_000)


@case(SCRIPTED)
def an_answer_without_words_is_an_answer():
    same(text(ask("Say nothing.")), "")
    same(joined(ask("Say nothing.", stream=True)), "")


@case(SCRIPTED)
def thoughts_are_told_apart():
    message = ask("Think first.").choices[0].message
    same((message.content, message.reasoning_content), ("Paris", "France, so"))
    deltas = [choice.delta for chunk in ask("Think first.", stream=True) for choice in chunk.choices]
    same("".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas), "France, so")
    same(ask("Think first.").usage.completion_tokens_details.reasoning_tokens, 2)


# ---- conversations ----


@case()
def content_may_come_in_parts():
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
    same(text(ask(messages=[{"role": "user", "content": parts}])), text(ask()))


@case()
def developers_and_systems_set_the_scene():
    scene = [{"role": "developer", "content": "Be short."}, {"role": "system", "content": "Be kind."}]
    answer = ask(messages=scene + user("Who speaks?"))
    if SCRIPTED:
        same(text(answer), "system system user")


@case()
def a_speaker_may_have_a_name():
    answer = ask(messages=[{"role": "user", "name": "alice", "content": "Who speaks?"}])
    if SCRIPTED:
        same(text(answer), "user(alice)")


@case()
def a_turn_may_be_empty():
    turns = user("Hello") + [{"role": "assistant", "content": ""}] + user("What is the capital of France?")
    assert ask(messages=turns).choices[0].message.content is not None


@case()
def an_earlier_answer_goes_on():
    first = ask()
    turns = user("What is the capital of France?") + [first.choices[0].message.model_dump(exclude_none=True)]
    assert ask(messages=turns + user("What is the capital of France?")).usage.prompt_tokens


# ---- tools ----


def weather(words="What is the weather in Paris?", **more):
    return ask(words, **({"tools": [WEATHER]} | more))


@case(TOOLS == "refused")
def tools_are_refused_by_name_where_the_model_knows_none():
    same(refused(openai.BadRequestError, weather).param, "tools")
    refused(openai.BadRequestError, weather, stream=True)


@case(TOOLS == "calls")
def a_call_reads_and_its_result_goes_back():
    first = weather().choices[0]
    same(first.finish_reason, "tool_calls")
    [call] = first.message.tool_calls
    same((call.type, call.function.name), ("function", "get_weather"))
    same(json.loads(call.function.arguments), {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = user("What is the weather in Paris?") + [first.message.model_dump(exclude_none=True), result]
    last = weather(messages=turns).choices[0]
    same((last.finish_reason, last.message.content), ("stop", "It is sunny."))
    assert not last.message.tool_calls


@case(TOOLS == "calls")
def streamed_calls_joined_are_the_calls():
    whole = weather().choices[0].message
    parts, ends = {}, []
    for chunk in weather(stream=True):
        for choice in chunk.choices:
            ends += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or []:
                part = parts.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                part["id"] += call.id or ""
                part["name"] += call.function.name or ""
                part["arguments"] += call.function.arguments or ""
    same(ends, ["tool_calls"])
    same(list(parts), list(range(len(whole.tool_calls))))
    wanted = [(call.function.name, call.function.arguments) for call in whole.tool_calls]
    same([(part["name"], part["arguments"]) for part in parts.values()], wanted)
    assert all(part["id"] for part in parts.values())


@case(TOOLS == "calls")
def the_stream_helper_of_the_client_gathers_calls():
    fields = {"model": MODEL, "messages": user("What is the weather in Paris?"), "tools": [WEATHER]}
    with client.chat.completions.stream(**fields, temperature=0, max_tokens=48) as stream:
        events = list(stream)
    assert any(event.type == "tool_calls.function.arguments.done" for event in events), events
    [call] = stream.get_final_completion().choices[0].message.tool_calls
    same(json.loads(call.function.arguments), {"city": "Paris"})


@case(TOOLS == "calls" and SCRIPTED)
def several_calls_have_an_id_each():
    calls = weather("What is the weather in Paris and Rome?").choices[0].message.tool_calls
    same([json.loads(call.function.arguments)["city"] for call in calls], ["Paris", "Rome"])
    same(len({call.id for call in calls}), 2)


@case(TOOLS == "calls")
def each_choice_makes_calls_of_its_own():
    choices = weather(n=2).choices
    same([choice.finish_reason for choice in choices], ["tool_calls", "tool_calls"])
    same(len({call.id for choice in choices for call in choice.message.tool_calls}), 2)


@case(TOOLS == "calls")
def no_tool_is_called_when_none_is_wanted():
    choice = weather(tool_choice="none").choices[0]
    same((choice.finish_reason, choice.message.tool_calls or []), ("stop", []))
    assert choice.message.content


@case()
def a_forced_call_is_refused_by_name():
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        error = refused(openai.BadRequestError, weather, tool_choice=choice)
        same((error.param, error.code), ("tool_choice", "unsupported_parameter"))


# ---- fields ----


@case()
def a_field_that_nobody_knows_is_let_through_and_named():
    fields = {"model": MODEL, "messages": user("Hello"), "max_tokens": 8}
    raw = client.chat.completions.with_raw_response.create(**fields, extra_body={"enable_warp": True})
    same(raw.headers["x-ignored-fields"], "enable_warp")
    assert raw.parse().choices


@case()
def fields_without_effect_here_are_taken():
    assert ask(user="u-1", metadata={"trip": "7"}, store=False, service_tier="auto").choices


@case()
def a_format_that_is_none_is_refused_by_name():
    error = refused(openai.BadRequestError, response_format={"type": "xml"})
    same(error.param, "response_format.type")


@case()
def a_value_out_of_range_is_refused_by_name():
    for field, value in [("temperature", 9), ("temperature", -1), ("top_p", 2), ("n", 0), ("max_tokens", 0)]:
        same(refused(openai.BadRequestError, **{field: value}).param, field)
    same(refused(openai.BadRequestError, messages=[]).param, "messages")
    same(refused(openai.BadRequestError, top_logprobs=2).param, "top_logprobs")


@case()
def a_prompt_that_is_too_long_says_so():
    for stream in (False, True):
        error = refused(openai.BadRequestError, words="word " * 4000, stream=stream)
        same((error.code, error.param), ("context_length_exceeded", "messages"))


@case()
def a_key_for_idempotency_is_taken():
    again = [ask(extra_headers={"Idempotency-Key": "k-1"}) for _ in range(2)]
    same(text(again[0]), text(again[1]))
    if SCRIPTED:  # the gateway: what is paid for is told again
        same(again[0].id, again[1].id)


# ---- keys and models ----


@case()
def a_wrong_key_stays_out():
    stranger = client.with_options(api_key="nobody")
    error = refused(openai.AuthenticationError, lambda: stranger.models.list())
    same(error.code, "invalid_api_key")
    chat = stranger.chat.completions
    refused(openai.AuthenticationError, lambda: chat.create(model=MODEL, messages=user("Hello")))


@case()
def no_key_stays_out():
    omitted = {"Authorization": openai.Omit()}
    error = refused(openai.AuthenticationError, lambda: client.models.list(extra_headers=omitted))
    same(error.code, "missing_api_key")


@case()
def an_unknown_model_is_not_found():
    error = refused(openai.NotFoundError, model="gpt-9")
    same((error.code, error.param), ("model_not_found", "model"))
    refused(openai.NotFoundError, lambda: client.models.retrieve("gpt-9"))


@case()
def models_are_listed_and_found_by_either_name():
    same([model.id for model in client.models.list()].count(MODEL), 1)
    for name in (MODEL, MODEL_ID):
        same((client.models.retrieve(name).id, client.models.retrieve(name).object), (name, "model"))
    same(ask(model=MODEL_ID).model, MODEL_ID)


# ---- trouble ----


@case(SCRIPTED)
def an_error_after_the_first_word_is_the_clients_error():
    words = []
    try:
        for chunk in ask("Break off.", stream=True):
            words += [choice.delta.content or "" for choice in chunk.choices]
    except openai.APIError as caught:
        same("".join(words), "one two ")
        assert caught.code and caught.message, caught
    else:
        raise AssertionError("the stream ended as if it were whole")


@case(SCRIPTED)
def what_was_charged_is_not_tried_again():
    eager = client.with_options(max_retries=2)
    fields = {"model": MODEL, "messages": user("Break off.")}
    error = refused(openai.InternalServerError, lambda: eager.chat.completions.create(**fields))
    same(error.response.request.headers["x-stainless-retry-count"], "0")
    same(error.response.headers["x-should-retry"], "false")


@case(SCRIPTED)
def a_full_network_says_when_to_come_again():
    error = refused(openai.InternalServerError, words="Be full.")
    same(error.status_code, 503)
    assert 1 <= int(error.response.headers["retry-after"]) <= 60


def endless(**more):
    bias = {} if SCRIPTED else {"logit_bias": {"1": -100}}  # the token that would end it
    return ask("Never end.", stream=True, max_tokens=1000, **bias, **more)


@case()
def who_breaks_off_frees_the_provider():
    for _ in range(8):
        stream = endless()
        next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
        stream.close()
    freed()


@case()
def who_breaks_off_several_choices_frees_the_provider():
    stream = endless(n=2)
    next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
    stream.close()
    freed()


FREED_WITHIN = 1.0  # seconds that the gateway may take, as it promises


def freed():
    """Sees to it that nothing runs for whoever left, and that the next is served; tells how long it took.

    The gateway shows what its providers run, and has a promise to keep. The local server shows nothing: there another
    answer begins when it has a slot, which is one of few.
    """
    began = time.monotonic()
    if SCRIPTED:
        while running():
            assert time.monotonic() < began + FREED_WITHIN, "a provider still runs what nobody waits for"
        took = time.monotonic() - began
        assert took < FREED_WITHIN, f"it took {took:.3f} s"
    else:
        next(iter(ask(stream=True)))
        took = time.monotonic() - began
    print(f"# free {took * 1000:.0f} ms after the last client left")
    assert "Paris" in text(ask())


def running():
    # The list may be a second old; each provider by its id is shown as it is.
    def get(path):
        with urllib.request.urlopen(BASE.removesuffix("/v1") + "/api/v1/providers" + path) as response:
            return json.load(response)

    return any(get(f"/{node['id']}")["load"]["running"] for node in get("")["providers"])


@case()
def eight_at_once_get_what_each_would_get_alone():
    def one(seed):
        return text(ask(seed=seed, temperature=1.5, max_tokens=16))

    alone = [one(seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        same(list(pool.map(one, range(8))), alone)


def main():
    failed = []
    for function in cases:
        try:
            function()
            print(f"ok {function.__name__}")
        except Exception:
            failed.append(function.__name__)
            print(f"FAILED {function.__name__}")
            traceback.print_exc()
    print(f"passed {len(cases) - len(failed)} of {len(cases)} with openai {openai.__version__}", flush=True)
    sys.exit(len(failed) != 0)


main()
