//! What an answer must look like, as a request says it: `response_format`.
//!
//! | `type` | what is done |
//! |---|---|
//! | `text` | free text |
//! | `json_object` | one JSON object; the word JSON need not stand in the conversation |
//! | `json_schema` | JSON of `json_schema.schema`; without one, a JSON object |
//! | `grammar` | text of `grammar.definition`, in the `grammar.syntax` `regex`; not OpenAI's here |
//!
//! With `strict: true` a keyword that cannot be enforced is refused by the provider; without, it has no effect. The
//! schema's limits are those of [`ram_core::format`]. Grammars in the manner of Lark are for embedders: a stranger's
//! could cost more than its bytes show.

use serde_json::Value;

use ram_core::chat::tools::PromptJson;
use ram_core::format::{self, ResponseFormat, Syntax};

use super::error::ApiError;
use super::json::{At, Found, take};
use super::request::IgnoredFields;

/// Longest `json_schema.name`: OpenAI's limit.
pub const SCHEMA_NAME_BYTES_MAX: usize = 64;

/// Reads `response_format`.
pub(super) fn format(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<ResponseFormat, ApiError> {
    const TYPES: &str = "`text`, `json_object`, `json_schema` or `grammar`";
    let at = found.at;
    let mut fields = found.object()?;
    let kind = take(&mut fields, &at, "type").ok_or_else(|| at.missing("type", TYPES))?;
    let of_its_own = match kind.value.as_str() {
        Some(kind @ ("json_schema" | "grammar")) => Some(kind),
        Some("text" | "json_object") => None,
        Some(_) => return Err(kind.expected(TYPES)),
        None => return Err(kind.mismatch(TYPES)),
    };
    let described =
        of_its_own.map(|key| take(&mut fields, &at, key).ok_or_else(|| at.missing(key, "an object")));
    for (key, _) in fields.iter().filter(|(_, value)| !value.is_null()) {
        ignored.note("response_format.", key);
    }
    match (kind.value.as_str(), described.transpose()?) {
        (Some("json_object"), _) => Ok(ResponseFormat::JsonObject),
        (Some("json_schema"), Some(described)) => json_schema(described, ignored),
        (_, Some(described)) => grammar(described, ignored),
        (_, None) => Ok(ResponseFormat::Text),
    }
}

/// Reads `json_schema`.
fn json_schema(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<ResponseFormat, ApiError> {
    let at = found.at;
    let mut fields = found.object()?;
    let name = take(&mut fields, &at, "name").ok_or_else(|| at.missing("name", "a string"))?;
    check_name(&name)?;
    if let Some(description) = take(&mut fields, &at, "description") {
        description.string()?;
    }
    let strict = take(&mut fields, &at, "strict").map(Found::boolean).transpose()?.unwrap_or(false);
    let schema = take(&mut fields, &at, "schema");
    for (key, _) in fields.iter().filter(|(_, value)| !value.is_null()) {
        ignored.note("response_format.json_schema.", key);
    }
    let Some(schema) = schema else { return Ok(ResponseFormat::JsonObject) };
    let at = schema.at;
    if !schema.value.is_object() {
        return Err(schema.mismatch("a JSON schema: an object"));
    }
    let schema = PromptJson::new(schema.object()?);
    format::check_schema(&schema).map_err(|error| invalid(&at, &error))?;
    Ok(ResponseFormat::JsonSchema { schema, strict })
}

/// Reads `grammar`.
fn grammar(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<ResponseFormat, ApiError> {
    const SYNTAXES: &str = "`regex`";
    let at = found.at;
    let mut fields = found.object()?;
    let syntax = take(&mut fields, &at, "syntax").ok_or_else(|| at.missing("syntax", SYNTAXES))?;
    let syntax = match syntax.value.as_str() {
        Some("regex") => Syntax::Regex,
        Some(_) => return Err(syntax.expected(SYNTAXES)),
        None => return Err(syntax.mismatch(SYNTAXES)),
    };
    let definition =
        take(&mut fields, &at, "definition").ok_or_else(|| at.missing("definition", "a string"))?;
    for (key, _) in fields.iter().filter(|(_, value)| !value.is_null()) {
        ignored.note("response_format.grammar.", key);
    }
    let at = definition.at;
    let format = ResponseFormat::Grammar { syntax, definition: definition.string()?.into() };
    format.check().map_err(|error| invalid(&at, &error))?;
    Ok(format)
}

/// Checks the name of a schema, which nothing depends on.
fn check_name(name: &Found<'_>) -> Result<(), ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let good = |name: &str| (1..=SCHEMA_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
    match &name.value {
        Value::String(text) if good(text) => Ok(()),
        Value::String(_) => {
            Err(name.expected(&format!("1 to {SCHEMA_NAME_BYTES_MAX} letters, digits, `_` or `-`")))
        }
        _ => Err(name.mismatch("a string")),
    }
}

fn invalid(at: &At<'_>, error: &format::FormatError) -> ApiError {
    let path = at.to_string();
    let message = format!("invalid `{path}`: {error}");
    ApiError::invalid_request(path, message)
}
