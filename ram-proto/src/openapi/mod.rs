//! The description of the API in OpenAPI 3.1: the schemas of what is sent and received, and what each path answers.
//!
//! Answers are described by the types that write them. A chat request is read by hand, field by field, so its schema is
//! written by hand too (`chat`), and a test holds it against
//! [`ChatRequest::parse`](crate::openai::ChatRequest::parse). What each path takes and answers stands in `paths`.

mod chat;
mod paths;

use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, RefBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApiBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};

use ram_core::id::JobId;
use ram_core::units::XRam;

use crate::openai::{
    ChatCompletion, ChatCompletionChunk, CompletionId, ErrorBody, ModelList, ServedBy, XramFields,
};
use crate::rest::{
    E2eAnswer, E2eEvent, E2eInit, E2eOffer, E2eProviders, E2eSubmit, Health, NetworkModels, NetworkStats,
    PipelineList, Pricing, ProviderList, Quote, Ready,
};

/// Name of the scheme by which a caller shows its key.
const BEARER: &str = "bearer";

/// The description of a coordinator of this version.
///
/// # Panics
/// Never: a description is a tree of texts and numbers.
#[must_use]
pub fn document(version: &str) -> Value {
    let license = LicenseBuilder::new().name("MIT OR Apache-2.0").identifier(Some("MIT OR Apache-2.0"));
    let info = InfoBuilder::new()
        .title("RAM Aggregator")
        .version(version)
        .description(Some(ABOUT))
        .license(Some(license.build()));
    let key =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key of this network."));
    let components = ComponentsBuilder::new()
        .security_scheme(BEARER, SecurityScheme::Http(key.build()))
        .schemas_from_iter(schemas());
    let api =
        OpenApiBuilder::new().info(info.build()).paths(paths::all()).components(Some(components.build()));
    let mut document =
        serde_json::to_value(api.build()).expect("a description is a tree of texts and numbers");
    // What this schema says of fields that hang together is more than the builder's types can hold.
    document["components"]["schemas"][chat::NAME] = chat::schema();
    unlink(&mut document);
    document
}

/// The schemas of all answers, and of what is inside them.
fn schemas() -> Vec<(String, RefOr<Schema>)> {
    fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
    let mut schemas = Vec::new();
    add::<ChatCompletion>(&mut schemas);
    add::<ChatCompletionChunk>(&mut schemas);
    add::<ErrorBody>(&mut schemas);
    add::<ModelList>(&mut schemas);
    add::<Health>(&mut schemas);
    add::<Ready>(&mut schemas);
    add::<ProviderList>(&mut schemas);
    add::<PipelineList>(&mut schemas);
    add::<NetworkStats>(&mut schemas);
    add::<NetworkModels>(&mut schemas);
    add::<Pricing>(&mut schemas);
    add::<Quote>(&mut schemas);
    add::<E2eProviders>(&mut schemas);
    add::<E2eInit>(&mut schemas);
    add::<E2eOffer>(&mut schemas);
    add::<E2eSubmit>(&mut schemas);
    add::<E2eAnswer>(&mut schemas);
    add::<E2eEvent>(&mut schemas);
    schemas
}

/// Takes the marks of links out of descriptions: what links to a type in the documentation of the code is a plain name
/// here.
fn unlink(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(about)) = fields.get_mut("description") {
                *about = about.replace("[`", "`").replace("`]", "`");
            }
            fields.values_mut().for_each(unlink);
        }
        Value::Array(items) => items.iter_mut().for_each(unlink),
        _ => {}
    }
}

/// As it writes itself: each amount that the product shows as a number once more as an exact decimal.
impl PartialSchema for XramFields {
    fn schema() -> RefOr<Schema> {
        fn exact<T: ToSchema>(about: &str) -> RefBuilder {
            RefBuilder::new().ref_location_from_schema_name(T::name()).description(Some(about))
        }
        let shown = |about| ObjectBuilder::new().schema_type(Type::Number).description(Some(about));
        let fields = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("xram_tokens_charged", shown("What the answer cost, in xRAM, for display."))
            .property("xram_tokens_charged_exact", exact::<XRam>("What the answer cost."))
            .property(
                "xram_session_remaining",
                shown("What the caller can still spend, in xRAM, for display."),
            )
            .property("xram_session_remaining_exact", exact::<XRam>("What the caller can still spend."))
            .property(
                "xram_price_per_1k",
                exact::<XRam>("Of 1,000 tokens, fixed when the request was taken."),
            )
            .property("xram_job_id", exact::<JobId>("The job, as the ledger knows it."))
            .property("xram_provider", exact::<ServedBy>("Who served it."));
        fields.description(Some("What this network adds to an answer.")).into()
    }
}

impl ToSchema for XramFields {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((XRam::name().into_owned(), XRam::schema()));
        schemas.push((JobId::name().into_owned(), JobId::schema()));
        schemas.push((ServedBy::name().into_owned(), ServedBy::schema()));
        ServedBy::schemas(schemas);
    }
}

impl PartialSchema for CompletionId {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^chatcmpl-[0-9a-f]{32}$"));
        text.description(Some("The id of an answer: `chatcmpl-` and its job.")).into()
    }
}

impl ToSchema for CompletionId {}

const ABOUT: &str = "\
An open network that runs language models on people's machines, behind OpenAI's API.

Every answer carries `x-request-id`. Every error has OpenAI's shape. A client that waits as long as `retry-after` says, \
and obeys `x-should-retry`, is always right. Money is a decimal string, an instant is milliseconds since 1970 UTC, \
memory is bytes.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes;
    use std::collections::BTreeSet;

    /// All `$ref`s of a tree.
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_path_is_described_and_nothing_else_is() {
        let document = document("1.2.3");
        let described: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let all: BTreeSet<String> = routes::ALL.iter().map(|path| path.replace("{*", "{")).collect();
        assert_eq!(described, all.iter().map(String::as_str).collect());
        assert_eq!(document["info"]["version"], "1.2.3");
        assert_eq!(document["openapi"], "3.1.0");
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_referred_to() {
        let document = document("0");
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let there: BTreeSet<String> =
            schemas.keys().map(|name| format!("#/components/schemas/{name}")).collect();
        let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
        assert_eq!(found, there);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_what_it_is() {
        let document = document("0");
        let mut names = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let place = format!("{method} {path}");
                assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{place}");
                assert!(!operation["summary"].as_str().unwrap().is_empty(), "{place}");
                for (status, response) in operation["responses"].as_object().unwrap() {
                    assert!(!response["description"].as_str().unwrap().is_empty(), "{place} {status}");
                    assert!(response["headers"].get("x-request-id").is_some(), "{place} {status}");
                }
            }
        }
    }
}
