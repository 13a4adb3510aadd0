//! Functions that a model may call, and the calls that it makes.
//!
//! A [`Tool`] is described to the model by its chat template. A [`ToolCall`] is what the model answers with in place
//! of, or beside, words; whoever asked runs it and sends the result back as a turn of the role
//! [`Tool`](super::Role::Tool).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::PromptText;

/// Longest name of a function, in bytes: OpenAI's limit.
pub const NAME_BYTES_MAX: usize = 64;

/// JSON of a user or a model. `Debug` shows its length only, as that of [`PromptText`] does.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PromptJson(Map<String, Value>);

impl PromptJson {
    /// Wraps an object.
    #[must_use]
    pub const fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    /// The object.
    #[must_use]
    pub const fn as_object(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Whether it has no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for PromptJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} fields>", self.0.len())
    }
}

/// A function that the model may call: an object with `name`, and usually `description` and `parameters` (a JSON
/// schema), as OpenAI's `tools[].function` has it. Its fields keep their order, for templates print them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PromptJson", into = "PromptJson")]
pub struct Tool(PromptJson);

/// Why an object describes no function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It has no name that could be called.
    #[error("a function's `name` is 1 to {NAME_BYTES_MAX} letters, digits, `_`, `-` or `.`")]
    Name,
}

impl Tool {
    /// The function's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.0.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The whole description.
    #[must_use]
    pub const fn function(&self) -> &PromptJson {
        &self.0
    }
}

impl TryFrom<PromptJson> for Tool {
    type Error = ToolError;

    fn try_from(function: PromptJson) -> Result<Self, ToolError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let name = function.0.get("name").and_then(Value::as_str).unwrap_or_default();
        let good = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
        if good { Ok(Self(function)) } else { Err(ToolError::Name) }
    }
}

impl From<Tool> for PromptJson {
    fn from(tool: Tool) -> Self {
        tool.0
    }
}

/// A call that a model made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// By which the turn with its result names it.
    pub id: PromptText,
    /// The function.
    pub name: PromptText,
    /// Its arguments: the text of a JSON object, as the model wrote it.
    pub arguments: PromptText,
}

impl ToolCall {
    /// Bytes of its texts together.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.id.as_str().len() + self.name.as_str().len() + self.arguments.as_str().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tool_has_a_name_that_can_be_called() {
        let check = |function: Value, expected: Option<&str>| {
            let tool = serde_json::from_value::<Tool>(function).ok();
            assert_eq!(tool.as_ref().map(Tool::name), expected);
        };
        check(json!({"name": "get_weather", "parameters": {"type": "object"}}), Some("get_weather"));
        check(json!({"name": "a.b-c"}), Some("a.b-c"));
        check(json!({"name": ""}), None);
        check(json!({"name": "two words"}), None);
        check(json!({"name": "x".repeat(NAME_BYTES_MAX + 1)}), None);
        check(json!({"description": "nameless"}), None);
        check(json!("get_weather"), None);
    }

    #[test]
    fn debug_shows_no_word_of_a_tool() {
        let tool: Tool = serde_json::from_value(json!({"name": "secret_plan"})).unwrap();
        let call =
            ToolCall { id: "secret".into(), name: "secret_plan".into(), arguments: "{\"secret\":1}".into() };
        assert!(!format!("{tool:?} {call:?}").contains("secret"));
    }
}
