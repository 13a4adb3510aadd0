//! How each family writes a call, and when a stretch of text is one.
//!
//! ```text
//! Tags      <tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>                     Qwen 2.5 and 3, Hermes
//!           <tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>   Qwen3-Coder, 3.5
//! Mistral   [TOOL_CALLS] [{"name": "f", "arguments": {…}}, …]                              up to Large 2
//!           [TOOL_CALLS]f[ARGS]{…}                                                         later, once for each call
//! DeepSeek  <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{…}\n```<｜tool▁call▁end｜>…
//!           …<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>…<｜tool▁calls▁end｜>         from V3.1 on
//! Llama     {"name": "f", "parameters": {…}}; …      the whole answer, perhaps behind <|python_tag|>
//! ```

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{ARGUMENTS_DEPTH_MAX, BLANK_BYTES_MAX, CALL_BYTES_MAX, CALLS_MAX};
use crate::chat::tools::Tool;

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Between `<tool_call>` and `</tool_call>`, as JSON or as tags for each parameter.
    Tags,
    /// Behind `[TOOL_CALLS]`.
    Mistral,
    /// Between `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`.
    DeepSeek,
    /// As JSON that is the whole answer.
    Llama,
}

const TAG: &str = "<tool_call>";
const TAG_END: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const TOOL_CALLS: &str = "[TOOL_CALLS]";
const CALL_ID: &str = "[CALL_ID]";
const ARGS: &str = "[ARGS]";
const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
const CALLS_END: &str = "<｜tool▁calls▁end｜>";
const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const CALL_SEP: &str = "<｜tool▁sep｜>";
const PYTHON_TAG: &str = "<|python_tag|>";

/// Closing tags that are tried for one call: its arguments may quote some.
const CLOSES_MAX: u8 = 16;
/// Longest stretch between `[TOOL_CALLS]` and the arguments: a name, and an id that is as long.
const MISTRAL_HEAD_BYTES_MAX: usize = 160;

impl Format {
    /// The format that a model's chat template shows it in earlier answers.
    ///
    /// A template with no mark that is known here is read as [`Format::Llama`]: bare JSON is what models write that
    /// were told of functions and of no way to call them.
    #[must_use]
    pub fn of_template(source: &str) -> Self {
        let marks = [(CALLS_BEGIN, Self::DeepSeek), (TOOL_CALLS, Self::Mistral), (TAG, Self::Tags)];
        marks.into_iter().find(|(mark, _)| source.contains(mark)).map_or(Self::Llama, |(_, format)| format)
    }

    /// Marks that must stay in the text of an answer even where the vocabulary has them as control tokens.
    #[must_use]
    pub const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Tags => &[TAG, TAG_END],
            Self::Mistral => &[TOOL_CALLS, CALL_ID, ARGS],
            Self::DeepSeek => &[CALLS_BEGIN, CALL_BEGIN, CALL_SEP, CALL_END, CALLS_END],
            Self::Llama => &[PYTHON_TAG],
        }
    }

    /// Whether a call may begin with `text`, which is not empty.
    pub(super) fn opening(self, text: &str, is_beginning: bool) -> Opening {
        let mark = match self {
            Self::Tags => TAG,
            Self::Mistral => TOOL_CALLS,
            Self::DeepSeek => CALLS_BEGIN,
            Self::Llama if !is_beginning => return Opening::None,
            Self::Llama if text.starts_with('{') => return Opening::Call(0),
            Self::Llama => PYTHON_TAG,
        };
        if text.starts_with(mark) {
            Opening::Call(mark.len())
        } else if mark.starts_with(text) {
            Opening::Maybe
        } else {
            Opening::None
        }
    }
}

/// Whether a call may begin somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// With a mark of so many bytes.
    Call(usize),
    /// The mark is not whole yet.
    Maybe,
    /// No.
    None,
}

/// A call without an id.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct NamedCall {
    pub(super) name: String,
    pub(super) arguments: String,
}

impl std::fmt::Debug for NamedCall {
    /// Nothing: both are words of the model.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NamedCall")
    }
}

/// What a stretch of text is, as far as it has been read.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Open.
    More,
    /// No call, or one that is too long.
    No,
    /// Calls, which end where the reading stopped.
    Calls(Vec<NamedCall>),
}

/// A stretch of text that may be a call. It is read character by character, so that it ends at the same one however the
/// stream was cut.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// White space before the mark, in bytes.
    pub(super) blank: usize,
    /// Bytes of the text that have been read, the white space included.
    pub(super) read: usize,
    /// Where the text behind the mark begins.
    body: usize,
    shape: Shape,
}

/// What has been seen of a candidate's body.
#[derive(Clone, Debug)]
enum Shape {
    /// One that ends with a closing mark.
    Closed { format: Closing, begun: bool, closes: u8 },
    /// JSON behind `[TOOL_CALLS]`, and where it begins.
    Mistral { json: Option<usize>, brackets: Brackets },
    /// JSON values one after the other: those that are whole, where the next begins, and where to look for it.
    Llama { calls: Vec<NamedCall>, json: Option<usize>, brackets: Brackets, from: usize },
}

/// The two formats with closing marks.
#[derive(Clone, Copy, Debug)]
enum Closing {
    Tags,
    DeepSeek,
}

impl Candidate {
    /// A candidate behind `blank` bytes of white space and a mark of `mark` bytes.
    pub(super) fn new(format: Format, blank: usize, mark: usize) -> Self {
        let body = blank + mark;
        let closed = |format| Shape::Closed { format, begun: false, closes: 0 };
        let brackets = Brackets::default();
        let shape = match format {
            Format::Tags => closed(Closing::Tags),
            Format::DeepSeek => closed(Closing::DeepSeek),
            Format::Mistral => Shape::Mistral { json: None, brackets },
            Format::Llama => Shape::Llama { calls: Vec::new(), json: None, brackets, from: 0 },
        };
        Self { blank, read: body, body, shape }
    }

    /// Reads on in `text`, the whole of what may be the call.
    pub(super) fn read(&mut self, text: &str, tools: &[Tool]) -> Verdict {
        while let Some(next) = text[self.read..].chars().next() {
            if self.read + next.len_utf8() > CALL_BYTES_MAX {
                return Verdict::No;
            }
            self.read += next.len_utf8();
            let body = &text[self.body..self.read];
            let verdict = match &mut self.shape {
                Shape::Closed { format, begun, closes } => closed(*format, body, begun, closes, tools),
                Shape::Mistral { json, brackets } => mistral(body, next, json, brackets, tools),
                Shape::Llama { calls, json, brackets, from } => {
                    llama(body, next, calls, (json, brackets, from), tools)
                }
            };
            if !matches!(verdict, Verdict::More) {
                return verdict;
            }
        }
        Verdict::More
    }

    /// The calls, if the stream ends here: models leave the last closing mark out.
    pub(super) fn end(&mut self, text: &str, tools: &[Tool]) -> Option<Vec<NamedCall>> {
        let body = &text[self.body..self.read];
        match &mut self.shape {
            Shape::Closed { format, .. } => format.calls(body, tools),
            Shape::Mistral { .. } => None,
            Shape::Llama { calls, json: None, from, .. } if !calls.is_empty() => {
                matches!(body[*from..].trim(), "" | ";").then(|| std::mem::take(calls))
            }
            Shape::Llama { .. } => None,
        }
    }
}

impl Closing {
    /// What the body begins with, and how it closes.
    const fn marks(self) -> ([&'static str; 2], &'static str) {
        match self {
            Self::Tags => (["{", FUNCTION], TAG_END),
            Self::DeepSeek => ([CALL_BEGIN, CALL_BEGIN], CALLS_END),
        }
    }

    /// The calls of a whole body.
    fn calls(self, body: &str, tools: &[Tool]) -> Option<Vec<NamedCall>> {
        let body = body.trim();
        match self {
            Self::Tags if body.starts_with(FUNCTION) => tagged_call(body, tools).map(|call| vec![call]),
            Self::Tags => json_call(body, tools).map(|call| vec![call]),
            Self::DeepSeek => deepseek_calls(body, tools),
        }
    }
}

/// One character more of a body with a closing mark.
fn closed(format: Closing, body: &str, begun: &mut bool, closes: &mut u8, tools: &[Tool]) -> Verdict {
    let (beginnings, close) = format.marks();
    if !*begun {
        let begins = body.trim_start();
        if beginnings.iter().any(|beginning| begins.starts_with(beginning)) {
            *begun = true;
        } else if body.len() > BLANK_BYTES_MAX || !beginnings.iter().any(|it| it.starts_with(begins)) {
            return Verdict::No;
        }
    }
    let Some(inside) = body.strip_suffix(close) else { return Verdict::More };
    if let Some(calls) = format.calls(inside, tools) {
        return Verdict::Calls(calls);
    }
    *closes += 1;
    if *closes < CLOSES_MAX { Verdict::More } else { Verdict::No }
}

/// One character more behind `[TOOL_CALLS]`.
fn mistral(
    body: &str,
    next: char,
    json: &mut Option<usize>,
    brackets: &mut Brackets,
    tools: &[Tool],
) -> Verdict {
    let from = match *json {
        Some(from) => from,
        None => match mistral_head(body) {
            Head::Json(from) => *json.insert(from),
            Head::More => return Verdict::More,
            Head::No => return Verdict::No,
        },
    };
    match brackets.read(next) {
        Nesting::Open => Verdict::More,
        Nesting::TooDeep => Verdict::No,
        Nesting::Closed => {
            mistral_calls(&body[..from], &body[from..], tools).map_or(Verdict::No, Verdict::Calls)
        }
    }
}

/// Where JSON begins.
enum Head {
    More,
    Json(usize),
    No,
}

/// Looks for the `[` or `{` of a list or an object, or for the `{` behind a name and `[ARGS]`. The text is looked at
/// after each character of it, so that JSON begins at the last.
fn mistral_head(body: &str) -> Head {
    let head = body.trim_start();
    let plain = |next: char| next.is_ascii_alphanumeric() || "_-.[]".contains(next) || next.is_whitespace();
    match (head.chars().next(), head.rsplit_once(ARGS)) {
        (None, _) => Head::More,
        (Some('[' | '{'), _) => Head::Json(body.len() - 1),
        (Some(_), Some((_, between))) if between.trim_start() == "{" => Head::Json(body.len() - 1),
        (Some(_), Some((_, between))) if !between.trim().is_empty() => Head::No,
        _ if body.len() <= MISTRAL_HEAD_BYTES_MAX && head.chars().all(plain) => Head::More,
        _ => Head::No,
    }
}

/// The calls of a list or of an object, or the one call of a name with its arguments.
fn mistral_calls(head: &str, json: &str, tools: &[Tool]) -> Option<Vec<NamedCall>> {
    let head = head.trim();
    if let Some(name) = head.strip_suffix(ARGS) {
        let name = name.split_once(CALL_ID).map_or(name, |(name, _)| name).trim();
        return call(name, json, tools).map(|call| vec![call]);
    }
    if json.starts_with('{') {
        return json_call(json, tools).map(|call| vec![call]);
    }
    let calls: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    if calls.is_empty() || calls.len() > CALLS_MAX {
        return None;
    }
    calls.into_iter().map(|call| json_call(call.get(), tools)).collect()
}

/// One character more of an answer that may be nothing but JSON.
fn llama(
    body: &str,
    next: char,
    calls: &mut Vec<NamedCall>,
    (json, brackets, from): (&mut Option<usize>, &mut Brackets, &mut usize),
    tools: &[Tool],
) -> Verdict {
    let begins = match *json {
        Some(begins) => begins,
        None => {
            // The first object begins with the body; others follow a semicolon.
            let head = body[*from..].trim_start();
            let head =
                if calls.is_empty() { head } else { head.strip_prefix(';').unwrap_or(head).trim_start() };
            let is_first_or_behind = calls.is_empty() || body[*from..].trim_start().starts_with(';');
            match head {
                "" if body.len() - *from <= BLANK_BYTES_MAX => return Verdict::More,
                "{" if is_first_or_behind && calls.len() < CALLS_MAX => *json.insert(body.len() - 1),
                _ => return Verdict::No,
            }
        }
    };
    match brackets.read(next) {
        Nesting::Open => Verdict::More,
        Nesting::TooDeep => Verdict::No,
        Nesting::Closed => match json_call(&body[begins..], tools) {
            Some(call) => {
                calls.push(call);
                (*json, *from) = (None, body.len());
                *brackets = Brackets::default();
                Verdict::More
            }
            None => Verdict::No,
        },
    }
}

/// Follows the brackets of a JSON value to its end. Whether it is JSON is for its reader to find.
#[derive(Clone, Copy, Debug, Default)]
struct Brackets {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// How far a JSON value is.
enum Nesting {
    Open,
    Closed,
    TooDeep,
}

impl Brackets {
    /// Reads one character of the value, which begins with a bracket.
    fn read(&mut self, next: char) -> Nesting {
        if self.in_string {
            match next {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return Nesting::Open;
        }
        match next {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        match self.depth {
            0 => Nesting::Closed,
            1..=DEPTH_MAX => Nesting::Open,
            _ => Nesting::TooDeep,
        }
    }
}

/// The deepest call: its arguments, in an object, in a list.
const DEPTH_MAX: usize = ARGUMENTS_DEPTH_MAX + 2;

/// A call as JSON: `{"name": "f", "arguments": {…}}`, where Llama says `parameters`.
fn json_call(text: &str, tools: &[Tool]) -> Option<NamedCall> {
    #[derive(Deserialize)]
    struct Written<'a> {
        name: String,
        #[serde(borrow, default, alias = "parameters")]
        arguments: Option<&'a RawValue>,
    }
    let written: Written<'_> = serde_json::from_str(text).ok()?;
    call(&written.name, written.arguments.map_or("{}", RawValue::get), tools)
}

/// A call of a function that is known, with arguments that are an object, or a text that holds one.
fn call(name: &str, arguments: &str, tools: &[Tool]) -> Option<NamedCall> {
    let tool = tools.iter().find(|tool| tool.name() == name)?;
    let arguments = if arguments.starts_with('"') {
        serde_json::from_str::<String>(arguments).ok()?
    } else {
        arguments.to_owned()
    };
    let object = serde_json::from_str::<Map<String, Value>>(&arguments).ok()?;
    let fits = object.values().all(|value| !deeper_than(value, ARGUMENTS_DEPTH_MAX - 1));
    fits.then(|| NamedCall { name: tool.name().to_owned(), arguments: arguments.trim().to_owned() })
}

/// Whether a value nests deeper than `levels`.
fn deeper_than(value: &Value, levels: usize) -> bool {
    let Some(inside) = levels.checked_sub(1) else { return value.is_array() || value.is_object() };
    match value {
        Value::Array(items) => items.iter().any(|item| deeper_than(item, inside)),
        Value::Object(fields) => fields.values().any(|field| deeper_than(field, inside)),
        _ => false,
    }
}

/// DeepSeek's calls, one after the other.
fn deepseek_calls(body: &str, tools: &[Tool]) -> Option<Vec<NamedCall>> {
    let mut calls = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (written, after) = rest.strip_prefix(CALL_BEGIN)?.split_once(CALL_END)?;
        let (before, behind) = written.split_once(CALL_SEP)?;
        let fenced = behind.trim().strip_suffix("```").and_then(|text| text.split_once("```json"));
        calls.push(match fenced {
            Some((name, arguments)) => call(name.trim(), arguments.trim(), tools)?,
            None => call(before.trim(), behind.trim(), tools)?,
        });
        if calls.len() > CALLS_MAX {
            return None;
        }
        rest = after.trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}

/// Qwen's call by tags. What a parameter is, its function's schema says.
fn tagged_call(body: &str, tools: &[Tool]) -> Option<NamedCall> {
    let (name, mut rest) = body.strip_prefix(FUNCTION)?.split_once('>')?;
    let tool = tools.iter().find(|tool| tool.name() == name.trim())?;
    let schema = tool.function().as_object().get("parameters").and_then(|schema| schema.get("properties"));
    let mut arguments = Map::new();
    rest = rest.trim_start();
    while let Some(parameter) = rest.strip_prefix(PARAMETER) {
        let (key, behind) = parameter.split_once('>')?;
        // The value may quote the closing tag: one that nothing but a tag follows closes it.
        let (text, after) = closes(behind)?;
        let key = key.trim();
        let value = value(text, schema.and_then(|schema| schema.get(key)));
        arguments.insert(key.to_owned(), value);
        rest = after;
    }
    if !rest.strip_prefix(FUNCTION_END)?.trim().is_empty() {
        return None;
    }
    call(tool.name(), &Value::Object(arguments).to_string(), tools)
}

/// A parameter's text up to its closing tag, and what follows that without white space: the next parameter or the
/// function's end.
fn closes(text: &str) -> Option<(&str, &str)> {
    text.match_indices(PARAMETER_END).find_map(|(at, _)| {
        let after = text[at + PARAMETER_END.len()..].trim_start();
        let follows = after.starts_with(PARAMETER) || after.starts_with(FUNCTION_END);
        follows.then(|| (&text[..at], after))
    })
}

/// The value that a text stands for, by its schema: the first of the types allowed that reads it, and else the text.
fn value(text: &str, schema: Option<&Value>) -> Value {
    let text = text.strip_prefix('\n').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    let as_text = || Value::String(text.to_owned());
    let types = schema.map(types).unwrap_or_default();
    if types.is_empty() {
        return as_text();
    }
    let read: Option<Value> = match text.trim() {
        "True" => Some(Value::Bool(true)),
        "False" => Some(Value::Bool(false)),
        "None" => Some(Value::Null),
        text => serde_json::from_str(text).ok(),
    };
    read.filter(|value| types.iter().any(|kind| is_of_type(value, kind))).unwrap_or_else(as_text)
}

/// The types, other than text, that a schema allows.
fn types(schema: &Value) -> Vec<&str> {
    let named = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind.as_str()],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let choices = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let mut types = named;
    types.extend(choices.filter_map(|choice| choice.get("type")?.as_str()));
    types.retain(|kind| *kind != "string");
    types
}

fn is_of_type(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}
