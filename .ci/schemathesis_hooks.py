"""What a description cannot say of a good chat request: steers random ones that they can be answered.

Only requests that are meant to be good are touched, and only in what JSON Schema has no words for.
"""

import uuid

import schemathesis

MODEL = "ram-demo"


@schemathesis.hook
def before_call(context, case, kwargs):
    """Names the model that somebody here serves, and puts conversations in order."""
    if not case.meta or not case.meta.generation.mode.is_positive:
        return
    if case.operation.path == "/api/v1/quote":
        case.query["model"] = MODEL
    if case.operation.path == "/api/v1/e2e/init" and isinstance(case.body, dict):
        case.body["model"] = MODEL
    if case.headers and "idempotency-key" in case.headers:
        case.headers["idempotency-key"] = str(uuid.uuid4())  # another body under the same key is another request
    if case.operation.path == "/v1/chat/completions" and isinstance(case.body, dict):
        chat(case.body)


def chat(body):
    """Makes a request answerable: by this model, within its context, in no more time than it takes."""
    body["model"] = MODEL
    body["messages"] = [turn for turn in body["messages"][:4] if turn["role"] != "tool"]
    for turn in body["messages"]:
        turn.pop("tool_calls", None)  # each would need its result
    if not body["messages"]:
        body["messages"] = [{"role": "user", "content": "hi"}]
    if body.get("tools"):
        body["tools"] = list({tool["function"]["name"]: tool for tool in body["tools"]}.values())
        body["tool_choice"] = "none"  # this model's template knows no functions, so it is told of none
    if not body.get("max_tokens"):
        body["max_completion_tokens"] = 8
