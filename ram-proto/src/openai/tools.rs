//! Functions that a model may call, and further variables for its chat template, as a request names them.

use serde_json::{Map, Value};

use ram_core::chat::template;
use ram_core::chat::tools::{PromptJson, Tool};

use super::error::ApiError;
use super::json::{At, Found, deeper_than, size, take};
use super::request::IgnoredFields;

/// Most functions of a request: OpenAI's limit.
pub const TOOLS_MAX: usize = 128;
/// Most bytes of all functions together, written as JSON: [`TOOLS_MAX`] of 4 KiB, three times what agents with many
/// tools send; a model reads all of it before each answer.
pub const TOOLS_BYTES_MAX: usize = 512 << 10;
/// Deepest nesting of a function's `parameters`: schemas end near 20, and a template recurses as deep as it prints.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Most entries of `chat_template_kwargs`: templates know a handful.
pub const TEMPLATE_KWARGS_MAX: usize = 32;
/// Most bytes of `chat_template_kwargs`, written as JSON: switches and short texts.
pub const TEMPLATE_KWARGS_BYTES_MAX: usize = 16 << 10;
/// Longest name in `chat_template_kwargs`.
pub const TEMPLATE_KWARG_NAME_BYTES_MAX: usize = 64;
/// Deepest nesting of `chat_template_kwargs`.
const TEMPLATE_KWARGS_DEPTH_MAX: usize = 8;

/// What can be done with an answer that has to call, or that must keep to a schema, where nothing holds it to that.
const NOT_HELD: &str = "answers are not held to a grammar yet";

/// Whether the model may call the functions of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ToolChoice {
    /// It may.
    #[default]
    Auto,
    /// It must not, so it does not hear of them.
    None,
}

/// Reads `tools`.
pub(super) fn tools(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<Vec<Tool>, ApiError> {
    let at = found.at;
    let items = found.array()?;
    if items.len() > TOOLS_MAX {
        return Err(at.expected(&format!("at most {TOOLS_MAX} functions, found {}", items.len())));
    }
    let mut bytes_left = TOOLS_BYTES_MAX;
    let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
    for (index, value) in items.into_iter().enumerate() {
        let here = At::Item(&at, index);
        let tool = tool(Found { at: here, value }, ignored)?;
        if tools.iter().any(|other| other.name() == tool.name()) {
            let function = At::Field(&here, "function");
            return Err(At::Field(&function, "name").expected("a name that no other function has"));
        }
        bytes_left = bytes_left
            .checked_sub(size(tool.function()))
            .ok_or_else(|| at.expected(&format!("at most {TOOLS_BYTES_MAX} bytes of functions in all")))?;
        tools.push(tool);
    }
    Ok(tools)
}

/// Reads one tool, which is a function.
fn tool(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<Tool, ApiError> {
    let at = found.at;
    let mut fields = found.object()?;
    let kind = take(&mut fields, &at, "type").ok_or_else(|| at.missing("type", "`function`"))?;
    function_kind(&kind)?;
    let described = take(&mut fields, &at, "function").ok_or_else(|| at.missing("function", "an object"))?;
    for (key, _) in fields.iter().filter(|(_, value)| !value.is_null()) {
        ignored.note("tools[].", key);
    }
    function(described, ignored)
}

/// Checks that a tool or a call is of type `function`.
pub(super) fn function_kind(kind: &Found<'_>) -> Result<(), ApiError> {
    match kind.value.as_str() {
        Some("function") => Ok(()),
        Some("custom") => Err(kind.unsupported("models here call functions with JSON arguments only")),
        Some(_) => Err(kind.expected("`function`")),
        None => Err(kind.mismatch("`function`")),
    }
}

/// Reads the description of a function. What the model reads of it keeps its order.
fn function(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<Tool, ApiError> {
    let at = found.at;
    let mut kept = Map::new();
    for (key, value) in found.object()? {
        let found = Found { at: At::Field(&at, &key), value };
        match key.as_str() {
            _ if found.value.is_null() => continue,
            "name" | "description" if !found.value.is_string() => return Err(found.mismatch("a string")),
            "name" | "description" => {}
            "parameters" => parameters(&found)?,
            "strict" if found.value == Value::Bool(false) => continue,
            "strict" if found.value.is_boolean() => return Err(found.unsupported(NOT_HELD)),
            "strict" => return Err(found.mismatch("a boolean")),
            _ => {
                ignored.note("tools[].function.", &key);
                continue;
            }
        }
        let Found { value, .. } = found;
        kept.insert(key, value);
    }
    if !kept.contains_key("name") {
        return Err(at.missing("name", "a string"));
    }
    Tool::try_from(PromptJson::new(kept)).map_err(|error| {
        let path = At::Field(&at, "name").to_string();
        let message = format!("invalid `{path}`: {error}");
        ApiError::invalid_request(path, message)
    })
}

/// Checks the JSON schema of a function's arguments: an object, and not too deep.
fn parameters(found: &Found<'_>) -> Result<(), ApiError> {
    if !found.value.is_object() {
        return Err(found.mismatch("a JSON schema: an object"));
    }
    if deeper_than(&found.value, SCHEMA_DEPTH_MAX) {
        return Err(found.expected(&format!("at most {SCHEMA_DEPTH_MAX} levels of nesting")));
    }
    Ok(())
}

/// Reads `tool_choice`.
pub(super) fn choice(found: &Found<'_>) -> Result<ToolChoice, ApiError> {
    const MUST_CALL: &str =
        "no answer can be made to call a function yet, so the values are `auto` and `none`";
    match &found.value {
        Value::String(word) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Err(found.unsupported(MUST_CALL)),
            _ => Err(found.expected("`auto` or `none`")),
        },
        Value::Object(_) => Err(found.unsupported(MUST_CALL)),
        _ => Err(found.mismatch("`auto` or `none`")),
    }
}

/// Reads `chat_template_kwargs`. A null in it is a variable that holds none.
pub(super) fn template_kwargs(found: Found<'_>) -> Result<Map<String, Value>, ApiError> {
    let at = found.at;
    if deeper_than(&found.value, TEMPLATE_KWARGS_DEPTH_MAX) {
        return Err(found.expected(&format!("at most {TEMPLATE_KWARGS_DEPTH_MAX} levels of nesting")));
    }
    if size(&found.value) > TEMPLATE_KWARGS_BYTES_MAX {
        return Err(found.expected(&format!("at most {TEMPLATE_KWARGS_BYTES_MAX} bytes of JSON")));
    }
    let variables = found.object()?;
    if variables.len() > TEMPLATE_KWARGS_MAX {
        return Err(at.expected(&format!("at most {TEMPLATE_KWARGS_MAX} variables")));
    }
    for key in variables.keys() {
        let here = At::Field(&at, key);
        if !is_variable(key) {
            let expected = format!(
                "names of 1 to {TEMPLATE_KWARG_NAME_BYTES_MAX} letters, digits or `_`, no digit first"
            );
            return Err(here.expected(&expected));
        }
        if template::is_reserved(key) {
            return Err(here.expected("no variable that the template gets from elsewhere"));
        }
    }
    Ok(variables)
}

fn is_variable(name: &str) -> bool {
    (1..=TEMPLATE_KWARG_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Reads `reasoning_effort`: OpenAI's words.
pub(super) fn effort(found: &Found<'_>) -> Result<&'static str, ApiError> {
    const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    let word = found.value.as_str().ok_or_else(|| found.mismatch("a string"))?;
    let known = EFFORTS.into_iter().find(|known| *known == word);
    known.ok_or_else(|| found.expected(&format!("one of `{}`", EFFORTS.join("`, `"))))
}

/// Adds what `reasoning_effort` means to a template, unless the caller has set the same variables: those are the more
/// exact words.
pub(super) fn think(variables: &mut Map<String, Value>, effort: &str) {
    let thinks = effort != "none";
    variables.entry("enable_thinking").or_insert(thinks.into());
    if thinks {
        variables.entry("reasoning_effort").or_insert(effort.into());
    }
}
