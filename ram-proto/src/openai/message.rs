//! The conversation of a chat request: roles, content as text or as parts of text, calls and their results.
//!
//! As at OpenAI, the results of all calls of an assistant's message follow right after it, in any order:
//! `assistant (calls a, b) · tool (b) · tool (a) · user or assistant …`.

use serde_json::{Map, Value};

use ram_core::chat::tools::{NAME_BYTES_MAX, ToolCall};
use ram_core::chat::{ChatMessage, PromptText, Role};

use super::error::ApiError;
use super::json::{At, Found, take};
use super::request::IgnoredFields;
use super::tools::function_kind;

/// Most messages of a conversation: agents that call tools for hours reach a thousand.
pub const MESSAGES_MAX: usize = 4096;
/// Most bytes of all contents and calls together: a million tokens, the longest context in sight, at four bytes each.
pub const CONTENT_BYTES_MAX: usize = 4 << 20;
/// Longest name of a speaker, in characters: OpenAI's limit.
pub const NAME_CHARS_MAX: usize = 64;
/// Most calls in one message: as many as there may be functions.
pub const CALLS_MAX: usize = 128;
/// Longest id of a call: clients send back ids of other servers too, some of which put a name inside.
pub const CALL_ID_BYTES_MAX: usize = 256;

const CONTENT: &str = "a string, or an array of parts of type `text`";
const ROLE: &str = "`system`, `developer`, `user`, `assistant` or `tool`";

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
    let mut unanswered = Unanswered::default();
    let mut messages = Vec::with_capacity(items.len());
    for (index, value) in items.into_iter().enumerate() {
        let mut message = turn(Found { at: At::Item(&at, index), value }, ignored)?;
        bytes_left = bytes_left
            .checked_sub(words(&message))
            .ok_or_else(|| at.expected(&format!("at most {CONTENT_BYTES_MAX} bytes of content in all")))?;
        unanswered.follow(&mut message, index, &at)?;
        messages.push(message);
    }
    unanswered.refuse(&at)?;
    Ok(messages)
}

/// Bytes of what a message says and calls.
fn words(message: &ChatMessage) -> usize {
    let calls = message.tool_calls.iter().flat_map(|call| [&call.id, &call.name, &call.arguments]);
    let texts = calls.chain(&message.tool_call_id).chain([&message.content]);
    texts.map(|text| text.as_str().len()).sum()
}

/// The calls of the last assistant's message that no message of a tool has answered yet.
#[derive(Default)]
struct Unanswered {
    /// Which message made them.
    index: usize,
    calls: Vec<ToolCall>,
}

impl Unanswered {
    /// Takes note of the next message; the result of a call gets the function's name, which some templates print.
    fn follow(&mut self, message: &mut ChatMessage, index: usize, messages: &At<'_>) -> Result<(), ApiError> {
        let Some(id) = &message.tool_call_id else {
            self.refuse(messages)?;
            *self = Self { index, calls: message.tool_calls.clone() };
            return Ok(());
        };
        let Some(at) = self.calls.iter().position(|call| call.id == *id) else {
            let here = At::Item(messages, index);
            let expected = "the id of a call of the assistant's message before, not answered yet";
            return Err(At::Field(&here, "tool_call_id").expected(expected));
        };
        let call = self.calls.swap_remove(at);
        message.name.get_or_insert(call.name);
        Ok(())
    }

    /// Refuses the conversation if a call is left.
    fn refuse(&self, messages: &At<'_>) -> Result<(), ApiError> {
        if self.calls.is_empty() {
            return Ok(());
        }
        let here = At::Item(messages, self.index);
        let expected = "a message of role `tool` for each call, right after this message";
        Err(At::Field(&here, "tool_calls").expected(expected))
    }
}

/// Reads one message.
fn turn(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<ChatMessage, ApiError> {
    let at = found.at;
    let mut fields = found.object()?;
    let role = speaker(&take(&mut fields, &at, "role").ok_or_else(|| at.missing("role", ROLE))?)?;
    let name = take(&mut fields, &at, "name").map(name).transpose()?;
    let content = match take(&mut fields, &at, "content") {
        Some(found) => content(found, ignored)?,
        None if role == Role::Assistant => PromptText::default(), // it called functions, or said nothing
        None => return Err(at.missing("content", CONTENT)),
    };
    let mut message = ChatMessage { name, ..ChatMessage::new(role, content) };
    if role == Role::Assistant
        && let Some(found) = take(&mut fields, &at, "tool_calls")
    {
        message.tool_calls = calls(found, ignored)?;
    }
    if role == Role::Tool {
        const ID: &str = "the id of the call whose result this is";
        let id = take(&mut fields, &at, "tool_call_id").ok_or_else(|| at.missing("tool_call_id", ID))?;
        message.tool_call_id = Some(call_id(id)?);
    }
    refuse_the_rest(fields, &at, ignored)?;
    Ok(message)
}

/// Reads `tool_calls`.
fn calls(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<Vec<ToolCall>, ApiError> {
    let at = found.at;
    let items = found.array()?;
    if items.len() > CALLS_MAX {
        return Err(at.expected(&format!("at most {CALLS_MAX} calls, found {}", items.len())));
    }
    let mut calls: Vec<ToolCall> = Vec::with_capacity(items.len());
    for (index, value) in items.into_iter().enumerate() {
        let here = At::Item(&at, index);
        let call = call(Found { at: here, value }, ignored)?;
        if calls.iter().any(|other| other.id == call.id) {
            return Err(At::Field(&here, "id").expected("an id that no other call of the message has"));
        }
        calls.push(call);
    }
    Ok(calls)
}

/// Reads one call. Whether its arguments are JSON is left to the template, as transformers leaves it.
fn call(found: Found<'_>, ignored: &mut IgnoredFields) -> Result<ToolCall, ApiError> {
    let at = found.at;
    let mut fields = found.object()?;
    if let Some(kind) = take(&mut fields, &at, "type") {
        function_kind(&kind)?;
    }
    let id = take(&mut fields, &at, "id").ok_or_else(|| at.missing("id", "a string"))?;
    let id = call_id(id)?;
    let function = take(&mut fields, &at, "function").ok_or_else(|| at.missing("function", "an object"))?;
    for key in unknown(&fields) {
        ignored.note("messages[].tool_calls[].", key);
    }
    let at = function.at;
    let mut fields = function.object()?;
    let name = take(&mut fields, &at, "name").ok_or_else(|| at.missing("name", "a string"))?;
    let name = called(name)?;
    let arguments = take(&mut fields, &at, "arguments")
        .ok_or_else(|| at.missing("arguments", "the text of a JSON object"))?
        .string()?;
    for key in unknown(&fields) {
        ignored.note("messages[].tool_calls[].function.", key);
    }
    Ok(ToolCall { id, name, arguments: PromptText::new(arguments) })
}

/// Reads the id of a call.
fn call_id(found: Found<'_>) -> Result<PromptText, ApiError> {
    let good = |id: &str| (1..=CALL_ID_BYTES_MAX).contains(&id.len()) && !id.contains(char::is_control);
    if found.value.as_str().is_some_and(|id| !good(id)) {
        return Err(found.expected(&format!("1 to {CALL_ID_BYTES_MAX} bytes without control characters")));
    }
    found.string().map(PromptText::new)
}

/// Reads the name of a function that was called. The model made it up, so it need not be one of `tools`.
fn called(found: Found<'_>) -> Result<PromptText, ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let good = |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
    if found.value.as_str().is_some_and(|name| !good(name)) {
        return Err(found.expected(&format!("1 to {NAME_BYTES_MAX} letters, digits, `_`, `-` or `.`")));
    }
    found.string().map(PromptText::new)
}

/// Reads `role`.
fn speaker(found: &Found<'_>) -> Result<Role, ApiError> {
    match found.value.as_str() {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        Some("tool") => Ok(Role::Tool),
        Some("function") => Err(found.unsupported("its successor is the role `tool`")),
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
            ("tool_calls", _) => return Err(found.expected("calls in messages of role `assistant` only")),
            ("tool_call_id", _) => return Err(found.expected("an id in messages of role `tool` only")),
            ("function_call", _) => return Err(found.unsupported("its successor is `tool_calls`")),
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
