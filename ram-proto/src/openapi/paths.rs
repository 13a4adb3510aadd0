//! What each path takes and answers.

use utoipa::ToSchema;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathItem, Paths, PathsBuilder,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{AnyOfBuilder, Object, ObjectBuilder, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, Header, HeaderBuilder, Ref, RefOr, Required, ResponseBuilder, Schema};

use ram_core::id::{ModelId, ProviderId};

use crate::openai::{
    ChatCompletion, ChatCompletionChunk, ErrorBody, IGNORED_FIELDS_MAX, ModelCard, ModelList,
    RETRY_AFTER_MAX, sse,
};
use crate::rest::{
    E2eAnswer, E2eEvent, E2eInit, E2eOffer, E2eProviders, E2eSubmit, Health, NetworkModels, NetworkStats,
    PipelineList, Pricing, ProviderList, ProviderView, Quote, Ready,
};
use crate::routes;

use super::{BEARER, chat};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
const OPENAI: &str = "OpenAI";
const NETWORK: &str = "network";
const SEALED: &str = "sealed";
const PROBES: &str = "probes";
const PIPELINES: &str = "The models that several providers hold together";

/// All paths.
pub(super) fn all() -> Paths {
    let gets = [
        (routes::MODELS, list_models()),
        (routes::MODEL, one_model()),
        (routes::HEALTH, health()),
        (routes::READY, ready()),
        (routes::PROVIDER_SOCKET, provider_socket()),
        (routes::PROVIDERS, open("providers", NETWORK, "The providers online", whole::<ProviderList>())),
        (routes::PROVIDER, one_provider()),
        (routes::PIPELINES, open("pipelines", NETWORK, PIPELINES, whole::<PipelineList>())),
        (routes::STATS, open("stats", NETWORK, "The network as a whole", whole::<NetworkStats>())),
        (routes::NETWORK_MODELS, network_models()),
        (routes::PRICING, open("pricing", NETWORK, "What 1,000 tokens cost now", whole::<Pricing>())),
        (routes::QUOTE, quote()),
        (routes::E2E_PROVIDERS, e2e_providers()),
        (routes::OPENAPI, description()),
    ];
    let paths = PathsBuilder::new()
        .path(routes::CHAT_COMPLETIONS, PathItem::new(HttpMethod::Post, chat_completion()))
        .path(routes::E2E_INIT, PathItem::new(HttpMethod::Post, e2e_init()))
        .path(routes::E2E_SUBMIT, PathItem::new(HttpMethod::Post, e2e_submit()));
    gets.into_iter()
        .fold(paths, |paths, (path, operation)| {
            // The router's sign for the rest of a path; a slash in it may be sent as `%2F`.
            paths.path(path.replace("{*", "{"), PathItem::new(HttpMethod::Get, operation.build()))
        })
        .build()
}

fn chat_completion() -> Operation {
    asked("createChatCompletion", OPENAI, "Asks a model")
        .description(Some(CHAT))
        .request_body(Some(chat_request()))
        .response("200", answered())
        .response("404", failed("There is no such model: `model_not_found`."))
        .response("504", failed("No provider answered in time: `timeout`."))
        .build()
}

fn e2e_providers() -> OperationBuilder {
    open("e2eProviders", SEALED, "The providers that open sealed prompts", whole::<E2eProviders>())
}

fn e2e_init() -> Operation {
    asked("e2eInit", SEALED, "Finds a provider for a sealed request")
        .description(Some(
            "Nothing of the prompt is said here. The offer stands for a while, for one request.",
        ))
        .request_body(Some(body::<E2eInit>()))
        .response("200", whole::<E2eOffer>())
        .response("404", failed("There is no such model: `model_not_found`."))
        .build()
}

fn e2e_submit() -> Operation {
    let events = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("data", text().content_media_type(JSON).content_schema(Some(reference::<E2eEvent>())))
        .required("data");
    let gone = "The provider that the prompt was sealed to serves it no more: `provider_gone`; begin anew. Or as of \
        chat requests, of the `idempotency-key`.";
    asked("e2eSubmit", SEALED, "Sends a prompt that its provider alone can read")
        .description(Some(SUBMIT))
        .request_body(Some(body::<E2eSubmit>()))
        .response("200", whole::<E2eAnswer>().content(EVENTS, Content::new(Some(events.build()))))
        .response("404", failed("There is no such offer of this caller, or it is over: `not_found`."))
        .response("409", failed(gone))
        .response("504", failed("The provider did not answer in time: `timeout`."))
        .build()
}

/// A request that takes a place, and that may be sent twice under one name.
fn asked(name: &str, tag: &str, summary: &str) -> OperationBuilder {
    operation(name, tag, summary)
        .security(SecurityRequirement::new(BEARER, [""; 0]))
        .parameter(idempotency_key())
        .response(
            "400",
            failed("The request is at fault: `param` names the field, `code` says what is wrong."),
        )
        .response("401", unauthorized())
        .response("408", failed("The body did not arrive in time: `request_timeout`."))
        .response(
            "409",
            failed("The `idempotency-key`'s first request still runs, or its answer is not kept any more."),
        )
        .response("413", failed("The body is longer than anybody needs: `request_too_large`."))
        .response(
            "422",
            failed("The `idempotency-key` stands for a request with another body: `idempotency_key_reused`."),
        )
        .response("429", limited())
        .response("500", failed("Something went wrong here: `internal_error`; or the answer grew too long to be gathered: `answer_too_long`."))
        .response("503", busy())
}

fn list_models() -> OperationBuilder {
    keyed("listModels", "The models that can be asked for", whole::<ModelList>())
}

fn one_model() -> OperationBuilder {
    let name = parameter("id", ParameterIn::Path, Required::True, reference::<ModelId>())
        .description(Some("Alias or full id. The slash of a full id may be sent plain or as `%2F`."));
    keyed("retrieveModel", "One model", whole::<ModelCard>())
        .parameter(name)
        .response("404", failed("There is no such model: `model_not_found`."))
}

fn health() -> OperationBuilder {
    operation("health", PROBES, "The process lives").response("200", whole::<Health>())
}

fn ready() -> OperationBuilder {
    operation("ready", PROBES, "The process can serve")
        .response("200", whole::<Ready>())
        .response("503", json::<Ready>("Something that is needed is not there yet; `checks` says what."))
}

fn one_provider() -> OperationBuilder {
    let id = parameter("id", ParameterIn::Path, Required::True, reference::<ProviderId>());
    let explain =
        parameter("explain", ParameterIn::Query, Required::False, words(&["1", "true", "0", "false"]))
            .description(Some("Whether to tell why it gets work or none, for each model that it offers."));
    open("provider", NETWORK, "One provider", whole::<ProviderView>())
        .parameter(id)
        .parameter(explain)
        .response("400", failed("The query is at fault: `param` names the word."))
        .response("404", failed("There is no such provider online: `not_found`."))
}

fn network_models() -> OperationBuilder {
    let summary = "The catalogue, with who serves each model, how fast and at which price";
    open("networkModels", NETWORK, summary, whole::<NetworkModels>())
}

fn quote() -> OperationBuilder {
    let count = |name, least: u32, about| {
        let bounds =
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).maximum(Some(u32::MAX));
        parameter(name, ParameterIn::Query, Required::False, bounds).description(Some(about))
    };
    open("quote", NETWORK, "What one request can cost at most, were it taken now", whole::<Quote>())
        .parameter(parameter("model", ParameterIn::Query, Required::True, reference::<ModelId>()))
        .parameter(count("prompt_tokens", 0, "Tokens of the prompt; 0 when absent."))
        .parameter(count("max_tokens", 1, "Most tokens of the answer; as in a chat request when absent."))
        .response("400", failed("The query is at fault: `param` names the word."))
        .response("404", failed("There is no such model: `model_not_found`."))
}

fn description() -> OperationBuilder {
    let object = ObjectBuilder::new().schema_type(Type::Object);
    operation("openapi", PROBES, "This description")
        .response("200", answer("The description.").content(JSON, Content::new(Some(object.build()))))
}

fn provider_socket() -> OperationBuilder {
    operation("providerSocket", NETWORK, "A provider's session, over WebSocket")
        .description(Some("What is spoken there is the network's own protocol."))
        .response("101", answer("The connection is a WebSocket from here on."))
        .response("400", failed("The request asks for no upgrade to WebSocket."))
}

/// A path for callers with a key.
fn keyed(name: &str, summary: &str, good: ResponseBuilder) -> OperationBuilder {
    open(name, OPENAI, summary, good)
        .security(SecurityRequirement::new(BEARER, [""; 0]))
        .response("401", unauthorized())
        .response("429", limited())
}

/// A path that asks the coordinator's core, which may be about to stop.
fn open(name: &str, tag: &str, summary: &str, good: ResponseBuilder) -> OperationBuilder {
    operation(name, tag, summary).response("200", good).response("503", busy())
}

fn operation(name: &str, tag: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().operation_id(Some(name)).tag(tag).summary(Some(summary))
}

fn parameter(
    name: &str,
    place: ParameterIn,
    required: Required,
    schema: impl Into<RefOr<Schema>>,
) -> ParameterBuilder {
    ParameterBuilder::new().name(name).parameter_in(place).required(required).schema(Some(schema))
}

fn idempotency_key() -> ParameterBuilder {
    let key = text().pattern(Some("^[!-~]{1,255}$"));
    parameter("idempotency-key", ParameterIn::Header, Required::False, key).description(Some(
        "A name for this request: sent again under it, it is answered again and charged once, even if the first \
         answer never arrived. The same name with another body is refused.",
    ))
}

fn body<T: ToSchema>() -> RequestBody {
    let content = Content::new(Some(reference::<T>()));
    RequestBodyBuilder::new().content(JSON, content).required(Some(Required::True)).build()
}

fn chat_request() -> RequestBody {
    let content = Content::new(Some(Ref::from_schema_name(chat::NAME)));
    RequestBodyBuilder::new().content(JSON, content).required(Some(Required::True)).build()
}

/// An answer to a chat request: in one piece, or as events.
fn answered() -> ResponseBuilder {
    let ignored = format!(
        "Fields of the request that nobody here has heard of, at most {IGNORED_FIELDS_MAX}; they had no effect."
    );
    whole::<ChatCompletion>()
        .description(ANSWERED)
        .content(EVENTS, Content::new(Some(event())))
        .header("x-ignored-fields", header(text(), &ignored))
        .header(
            "idempotent-replayed",
            header(words(&["true"]), "This answer was told before, and is not charged again."),
        )
}

/// One event of a stream.
fn event() -> Object {
    let told = AnyOfBuilder::new().item(reference::<ChatCompletionChunk>()).item(reference::<ErrorBody>());
    let json = text()
        .description(Some("A chunk, or the error that ends the stream."))
        .content_media_type(JSON)
        .content_schema(Some(Schema::AnyOf(told.build())));
    let done = words(&[sse::DONE_DATA]).description(Some("The last event of a whole answer."));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("One event."))
        .property("data", AnyOfBuilder::new().item(json).item(done))
        .required("data")
        .build()
}

fn unauthorized() -> ResponseBuilder {
    failed("No key came along, `missing_api_key`, or none that is valid, `invalid_api_key`.")
        .header("www-authenticate", header(text(), "The scheme: `Bearer`."))
}

/// 429. Final ones say so.
fn limited() -> ResponseBuilder {
    failed(
        "Too fast: `rate_limit_exceeded`, worth another try after a while. Or nothing is left to spend: \
         `insufficient_quota`, which is final and says so by `x-should-retry: false`.",
    )
    .header("retry-after", header(seconds(), "Seconds to wait."))
    .header("x-should-retry", header(words(&["true", "false"]), "Overrides what clients make of the status."))
}

/// 503. What comes back says when it may be worth another try.
fn busy() -> ResponseBuilder {
    failed("Nobody can take the request now: `no_capacity`; or whoever had it was lost: `provider_lost`.")
        .header("retry-after", header(seconds(), "Seconds to wait."))
}

/// 200 with a body of one type.
fn whole<T: ToSchema>() -> ResponseBuilder {
    json::<T>("What was asked for.")
}

fn failed(about: &str) -> ResponseBuilder {
    json::<ErrorBody>(about)
}

fn json<T: ToSchema>(about: &str) -> ResponseBuilder {
    answer(about).content(JSON, Content::new(Some(reference::<T>())))
}

/// Any answer: all carry the request's id.
fn answer(about: &str) -> ResponseBuilder {
    let id = text().pattern(Some("^req_[0-9a-f]{32}$"));
    ResponseBuilder::new()
        .description(about)
        .header("x-request-id", header(id, "Names the request in our logs."))
}

fn header(schema: ObjectBuilder, about: &str) -> Header {
    HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build()
}

fn seconds() -> ObjectBuilder {
    let whole = ObjectBuilder::new().schema_type(Type::Integer);
    whole.minimum(Some(1)).maximum(Some(RETRY_AFTER_MAX.as_secs()))
}

fn words(words: &[&str]) -> ObjectBuilder {
    text().enum_values(Some(words.iter().copied()))
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn reference<T: ToSchema>() -> Ref {
    Ref::from_schema_name(T::name())
}

const CHAT: &str = "\
Every field that OpenAI knows is honoured, or refused with a 400 that names it. A field that nobody here has heard of is \
let through and named in `x-ignored-fields`. A null equals an absent field. With `stream: true` the answer comes as \
server-sent events: status and headers wait for the first word, or for five seconds; comments keep a silent stream open; \
an error after that is one event with `error` and ends the stream without `[DONE]`.";

const ANSWERED: &str = "\
The answer: a completion, or with `stream: true` a chunk in each event. The fields `xram_…` say what it cost, who served \
it, and which job it was.";

const SUBMIT: &str = "\
The prompt is sealed to the key of the offer, in the version of the offer. Version 1: X25519, HKDF-SHA256 with the info \
`xram-e2e-v1`, AES-256-GCM; the answer's text comes in one box under the same key. Version 2: HPKE (RFC 9180), bound to \
job, node and model; the answer comes in numbered boxes (RFC 9458 and its chunked draft), of which each holds one choice \
of OpenAI's stream, with `stream: true` as they are written.";
