//! The conversation of a chat request: roles, and content as text or as parts of text.

use serde_json::{Map, Value};

use ram_core::chat::{ChatMessage, PromptText, Role};

use super::error::ApiError;
use super::json::{At, Found, take};
use super::request::IgnoredFields;

/// Most messages of a conversation: agents that call tools for hours reach a thousand.
pub const MESSAGES_MAX: usize = 4096;
/// Most bytes of all contents together: a million tokens, the longest context in sight, at four bytes each.
pub const CONTENT_BYTES_MAX: usize = 4 << 20;
/// Longest name of a speaker, in characters: OpenAI's limit.
pub const NAME_CHARS_MAX: usize = 64;

const CONTENT: &str = "a string, or an array of parts of type `text`";
const ROLE: &str = "`system`, `developer`, `user` or `assistant`";

/// Reads `messages`.
pub(super) fn conversation(
    found: Found<'_>,
    ignored: &mut IgnoredFields,
) -> Result<Vec<ChatMessage>, ApiError> {
    let at = found.at;
    let items = found.array()?;
    if !(1..=MESSAGES_MAX).contains(&items.len()) {
        return Err(at.expected(&format!("1 to {MESSAGES_MAX} messages, found {}", items.len())));
    }
    let mut bytes_left = CONTENT_BYTES_MAX;
    let mut messages = Vec::with_capacity(items.len());
    for (index, value) in items.into_iter().enumerate() {
        let message = turn(Found { at: At::Item(&at, index), value }, ignored)?;
        bytes_left = bytes_left
            .checked_sub(message.content.as_str().len())
            .ok_or_else(|| at.expected(&format!("at most {CONTENT_BYTES_MAX} bytes of content in all")))?;
        messages.push(message);
    }
    Ok(messages)
}

/// Reads one message.
fn turn(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<ChatMessage, ApiError> {
    let at = found.at;
    let mut fields = found.object()?;
    let role = speaker(&take(&mut fields, &at, "role").ok_or_else(|| at.missing("role", ROLE))?)?;
    let name = take(&mut fields, &at, "name").map(name).transpose()?;
    let content = match take(&mut fields, &at, "content") {
        Some(found) => content(found, ignored)?,
        // An assistant that called tools said nothing; its call is refused below.
        None if role == Role::Assistant => PromptText::default(),
        None => return Err(at.missing("content", CONTENT)),
    };
    refuse_the_rest(fields, &at, ignored)?;
    Ok(ChatMessage { name, ..ChatMessage::new(role, content) })
}

/// Reads `role`.
fn speaker(found: &Found<'_>) -> Result<Role, ApiError> {
    match found.value.as_str() {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("tool" | "function") => Err(found.unsupported("models here do not call tools")),
        Some(_) => Err(found.expected(ROLE)),
        None => Err(found.mismatch(ROLE)),
    }
}

/// Reads `name`, by OpenAI's pattern: no white space, none of the characters that templates use as marks.
fn name(found: Found<'_>) -> Result<PromptText, ApiError> {
    let good = |text: &str| {
        !text.is_empty()
            && text.chars().take(NAME_CHARS_MAX + 1).count() <= NAME_CHARS_MAX
            && !text.contains(|c: char| c.is_whitespace() || c.is_control() || "<|\\/>".contains(c))
    };
    if found.value.as_str().is_some_and(|text| !good(text)) {
        let expected = format!(
            "1 to {NAME_CHARS_MAX} characters without white space and without `<`, `|`, `\\`, `/`, `>`"
        );
        return Err(found.expected(&expected));
    }
    found.string().map(PromptText::new)
}

/// Reads `content`. Parts are joined by line breaks, as vLLM and llama.cpp join them.
fn content(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<PromptText, ApiError> {
    match found {
        Found { value: Value::String(text), .. } => Ok(PromptText::new(text)),
        Found { value: Value::Array(parts), at } => {
            let parts = parts.into_iter().enumerate();
            let texts = parts.map(|(index, value)| part(Found { at: At::Item(&at, index), value }, ignored));
            Ok(PromptText::new(texts.collect::<Result<Vec<_>, _>>()?.join("\n")))
        }
        other => Err(other.mismatch(CONTENT)),
    }
}

/// Reads one part of a content.
fn part(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<String, ApiError> {
    let at = found.at;
    let mut fields = found.object()?;
    let kind = take(&mut fields, &at, "type").ok_or_else(|| at.missing("type", "`text`"))?;
    match kind.value.as_str() {
        Some("text") => {}
        Some("image_url" | "input_audio" | "file" | "refusal") => {
            return Err(kind.unsupported("models here read text only"));
        }
        Some(_) => return Err(kind.expected("`text`")),
        None => return Err(kind.mismatch("`text`")),
    }
    let text = take(&mut fields, &at, "text").ok_or_else(|| at.missing("text", "a string"))?.string()?;
    for key in unknown(&fields) {
        ignored.note("messages[].content[].", key);
    }
    Ok(text)
}

/// Refuses what a message can carry at OpenAI and not here; notes what nobody knows.
///
/// Earlier reasoning (`reasoning_content`) is never shown to a model again, so it is noted too.
fn refuse_the_rest(
    fields: Map<String, Value>,
    at: &At<'_>,
    ignored: &mut IgnoredFields,
) -> Result<(), ApiError> {
    for (key, value) in fields {
        let found = Found { at: At::Field(at, &key), value };
        match (key.as_str(), &found.value) {
            (_, Value::Null) => {}
            ("tool_calls", Value::Array(calls)) if calls.is_empty() => {}
            ("tool_calls" | "tool_call_id" | "function_call", _) => {
                return Err(found.unsupported("models here do not call tools"));
            }
            ("refusal" | "audio", _) => return Err(found.unsupported("models here read text only")),
            _ => ignored.note("messages[].", &key),
        }
    }
    Ok(())
}

/// The keys that are left over and hold something.
fn unknown(fields: &Map<String, Value>) -> impl Iterator<Item = &str> {
    fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str())
}
