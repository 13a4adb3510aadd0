//! A model's own chat template: any Hugging Face `chat_template`, rendered in a sandbox.
//!
//! The template comes with a model, from a stranger: it sees the conversation and the special tokens, nothing else,
//! and it runs on a budget of instructions, recursion and output. The environment is that of `transformers`: Jinja2
//! with `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, Python's methods on strings and
//! dictionaries, and a `tojson` that writes what Python's `json.dumps` writes.
//!
//! Start at [`ChatTemplate::render`]. Known gaps against Jinja2, of which no family's template makes use:
//! - the filters `truncate`, `wordwrap`, `striptags`, `urlencode`, `xmlattr`, `filesizeformat` and `random`, and the
//!   globals `cycler`, `joiner` and `lipsum`;
//! - `varargs` and `kwargs` of a macro, `{!r}` in `str.format`, `\N{…}` in a literal, `autoescape` blocks;
//! - the condition of a loop (`for … if …`), which is asked of all items before the first is taken;
//! - an order between values of different kinds, which Python refuses;
//! - the `str` of views and ranges, which print as lists; masks of `{% generation %}` blocks, whose tags do nothing.
//!
//! The budget bounds time, output, and the bytes of the texts and lists that operators, filters, methods and captured
//! blocks build along the way ([`BUILT_BYTES_MAX`]). Slices of a long text are not counted, nor is the stack that a
//! deeply nested value takes to be compared: whoever loads a model's weights trusts its template that far. Users cannot
//! reach it, for their words are values and never source.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, json};

use super::ChatMessage;
use super::calls::Format;
use super::tools::{Tool, ToolCall};
use crate::units::Timestamp;

mod budget;
mod date;
mod filters;
mod format;
mod json;
mod methods;
mod operators;
mod source;
mod text;

/// Longest source of a template, in bytes: the longest in use (with tools and images) are near 20 KiB.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Longest rendered prompt, in bytes: a context of 1 M tokens at 8 bytes each.
pub const PROMPT_BYTES_MAX: usize = 8 << 20;
/// Instructions of one rendering: some 100 a message are usual, so this reads conversations of 20,000 messages.
pub const FUEL: u64 = 2_000_000;
/// All that one rendering may build along the way, in bytes: 32 times the longest prompt. Most templates copy a message
/// four or five times.
pub const BUILT_BYTES_MAX: usize = 256 << 20;
/// Deepest nesting of macros and blocks: templates that print a JSON schema recurse to its depth.
pub const RECURSION_MAX: usize = 64;
/// Longest message of `raise_exception` that is passed on, in characters.
pub const REFUSAL_CHARS_MAX: usize = 200;

/// Why a conversation was not rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model's template is longer than [`SOURCE_BYTES_MAX`].
    #[error("the chat template of {0} bytes is over the limit of {SOURCE_BYTES_MAX}")]
    SourceTooLong(usize),
    /// The model's template is not Jinja2.
    #[error("the chat template does not parse, line {line}: {reason}")]
    Syntax {
        /// Line of the template, from 1.
        line: usize,
        /// What the parser says of it.
        reason: String,
    },
    /// The model's template failed on this conversation: a filter, method or value that is not there.
    #[error("the chat template fails in line {line}: {reason}")]
    Failed {
        /// Line of the template, from 1.
        line: usize,
        /// The kind of failure. Holds no user data.
        reason: String,
    },
    /// The template refuses the conversation by `raise_exception`: roles in the wrong order, for one.
    ///
    /// Holds the message where it stands so in the template's source, and nothing where it was built from user data.
    #[error("the model refuses the conversation{}", .0.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    Refused(Option<String>),
    /// The template took more than [`FUEL`] instructions.
    #[error("the chat template took more than {FUEL} instructions")]
    OutOfFuel,
    /// The template built more than [`BUILT_BYTES_MAX`] bytes of values, or one longer than any prompt.
    #[error("the chat template built more than {BUILT_BYTES_MAX} bytes")]
    OutOfMemory,
    /// There are functions to call, and the template has no place for them.
    #[error("the chat template has no place for functions to call")]
    ToolsUnsupported,
    /// The rendered prompt would be longer than [`PROMPT_BYTES_MAX`].
    #[error("the rendered prompt is over the limit of {PROMPT_BYTES_MAX} bytes")]
    PromptTooLong,
}

/// Special tokens as the template knows them, from `tokenizer_config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`, the token that begins a text.
    pub bos: Option<String>,
    /// `eos_token`, the token that ends a turn.
    pub eos: Option<String>,
    /// Others by their variable's name, such as `pad_token` and `unk_token`.
    pub others: BTreeMap<String, String>,
}

/// What a rendering may vary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateOptions {
    /// Whether the prompt ends with the head of the assistant's turn. True by default.
    pub add_generation_prompt: bool,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Further variables, such as `enable_thinking`. None of them hides what the template gets from elsewhere.
    pub extra: Map<String, serde_json::Value>,
    /// The instant that `strftime_now` writes, in UTC. With none the function is not defined, and templates fall back
    /// on a date of their own.
    pub today: Option<Timestamp>,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, tools: Vec::new(), extra: Map::new(), today: None }
    }
}

/// Whether a variable's name belongs to the environment: a caller's own variable may not have it.
///
/// These are what [`ChatTemplate::render`] sets, what `transformers` would set besides, and the functions that a
/// template can call.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    const NAMES: [&str; 13] = [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "strftime_now",
        "raise_exception",
        "namespace",
        "range",
        "dict",
        "debug",
        "loop",
        "self",
    ];
    NAMES.contains(&name) || name.ends_with("_token") || name.starts_with("__")
}

/// A parsed chat template. Cheap to clone and shared freely between threads.
#[derive(Clone)]
pub struct ChatTemplate(Arc<Parsed>);

struct Parsed {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
    supports_tools: bool,
    takes_no_content: bool,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError::SourceTooLong`] or [`TemplateError::Syntax`]: the model's files are at fault.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::SourceTooLong(source.len()));
        }
        let source = source::plain_lines(source);
        let mut environment = environment();
        environment.add_template_owned(NAME, source::rewrite(&source)).map_err(|error| {
            TemplateError::Syntax {
                line: error.line().unwrap_or(1),
                reason: error.detail().unwrap_or("syntax error").chars().take(REFUSAL_CHARS_MAX).collect(),
            }
        })?;
        let template = environment.get_template(NAME);
        let supports_tools = template.is_ok_and(|it| it.undeclared_variables(false).contains("tools"));
        let takes_no_content = takes_no_content(&source);
        Ok(Self(Arc::new(Parsed { environment, source, special, supports_tools, takes_no_content })))
    }

    /// Whether the template reads the variable `tools`: without, a model never hears of the functions it may call.
    #[must_use]
    pub fn supports_tools(&self) -> bool {
        self.0.supports_tools
    }

    /// How a model of this template writes its calls; `None` where it cannot be told of functions.
    #[must_use]
    pub fn call_format(&self) -> Option<Format> {
        self.0.supports_tools.then(|| Format::of_template(&self.0.source))
    }

    /// The prompt of a conversation, as the model wants to read it.
    ///
    /// The same arguments give the same text, on every machine and at every time.
    ///
    /// # Errors
    /// [`TemplateError::ToolsUnsupported`] when there are functions and [`Self::supports_tools`] is false;
    /// [`TemplateError::Refused`] when the conversation is at fault; any other variant when the template is.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: &TemplateOptions,
    ) -> Result<String, TemplateError> {
        if !options.tools.is_empty() && !self.0.supports_tools {
            return Err(TemplateError::ToolsUnsupported);
        }
        let called = messages.iter().any(|message| !message.tool_calls.is_empty());
        match self.render_with(messages, options, Arguments::Object) {
            // DeepSeek's join the arguments to a text, where transformers and most families have an object.
            Err(TemplateError::Failed { .. }) if called => {
                self.render_with(messages, options, Arguments::Text)
            }
            rendered => rendered,
        }
    }

    fn render_with(
        &self,
        messages: &[ChatMessage],
        options: &TemplateOptions,
        arguments: Arguments,
    ) -> Result<String, TemplateError> {
        self.render_value(self.variables(messages, options, arguments))
    }

    /// What the template makes of these variables and no others: a conversation and its options in a caller's own
    /// words, for comparison with another renderer. The special tokens are not added.
    ///
    /// `today` is the instant of `strftime_now`, as in [`TemplateOptions::today`].
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_variables(
        &self,
        variables: &Map<String, serde_json::Value>,
        today: Option<Timestamp>,
    ) -> Result<String, TemplateError> {
        let named = variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        let mut variables: BTreeMap<&str, Value> = named.collect();
        if let Some(today) = today {
            variables.insert("strftime_now", strftime_now(today));
        }
        self.render_value(Value::from_pairs(variables))
    }

    fn render_value(&self, variables: Value) -> Result<String, TemplateError> {
        let template = self.0.environment.get_template(NAME).map_err(|error| self.blame(&error))?;
        let mut prompt = Bounded::default();
        let rendered = template.render_captured_to(variables, &mut prompt);
        if prompt.overrun {
            return Err(TemplateError::PromptTooLong);
        }
        rendered.map_err(|error| self.blame(&error))?;
        Ok(String::from_utf8(prompt.bytes).expect("the renderer writes whole strings"))
    }

    /// Everything that the template can see.
    fn variables(&self, messages: &[ChatMessage], options: &TemplateOptions, arguments: Arguments) -> Value {
        let special = &self.0.special;
        let extra = options.extra.iter().filter(|(name, _)| !is_reserved(name));
        let mut variables: BTreeMap<&str, Value> =
            extra.map(|(name, value)| (name.as_str(), Value::from(Serde(value)))).collect();
        // As in transformers, these two are there and none, not undefined.
        let tools: Vec<serde_json::Value> = options.tools.iter().map(described).collect();
        variables.insert("tools", if tools.is_empty() { ().into() } else { Value::from(Serde(&tools)) });
        variables.insert("documents", Value::from(()));
        for (name, token) in &special.others {
            variables.insert(name, Value::from(token.as_str()));
        }
        let named = [("bos_token", &special.bos), ("eos_token", &special.eos)];
        for (name, token) in named.into_iter().filter_map(|(name, token)| Some((name, token.as_deref()?))) {
            variables.insert(name, Value::from(token));
        }
        if let Some(today) = options.today {
            variables.insert("strftime_now", strftime_now(today));
        }
        let turn = |message| turn(message, arguments, self.0.takes_no_content);
        let turns: Vec<serde_json::Value> = messages.iter().map(turn).collect();
        variables.insert("messages", Value::from(Serde(&turns)));
        variables.insert("add_generation_prompt", Value::from(options.add_generation_prompt));
        Value::from_pairs(variables)
    }

    /// Whose fault an error of the renderer is. Its detail may quote the conversation, so only its kind is kept.
    fn blame(&self, error: &minijinja::Error) -> TemplateError {
        let causes = || std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        if let Some(Refusal(message)) = causes().find_map(|cause| cause.downcast_ref()) {
            let from_source = self.0.source.contains(message.as_str()).then(|| message.clone());
            return TemplateError::Refused(from_source);
        }
        if causes().any(|cause| cause.is::<budget::Spent>()) {
            return TemplateError::OutOfMemory;
        }
        match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::OutOfFuel,
            kind => TemplateError::Failed { line: error.line().unwrap_or(1), reason: kind.to_string() },
        }
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({} bytes)", self.0.source.len())
    }
}

/// How the arguments of a call are given to a template.
#[derive(Clone, Copy)]
enum Arguments {
    /// As what they say, where they are JSON.
    Object,
    /// As the model wrote them.
    Text,
}

/// A function as transformers has it.
fn described(tool: &Tool) -> serde_json::Value {
    json!({"type": "function", "function": tool.function()})
}

/// A message as transformers has it: what is not there has no key, for templates ask `'tool_calls' in message`.
fn turn(message: &ChatMessage, arguments: Arguments, takes_no_content: bool) -> serde_json::Value {
    let ChatMessage { role, content, name, tool_calls, tool_call_id } = message;
    let mut turn = json!({"role": role, "content": content});
    if takes_no_content && !tool_calls.is_empty() && content.as_str().is_empty() {
        turn["content"] = serde_json::Value::Null;
    }
    if let Some(name) = name {
        turn["name"] = json!(name);
    }
    if !tool_calls.is_empty() {
        turn["tool_calls"] = tool_calls.iter().map(|call| called(call, arguments)).collect();
    }
    if let Some(id) = tool_call_id {
        turn["tool_call_id"] = json!(id);
    }
    turn
}

/// A call as transformers has it.
fn called(call: &ToolCall, arguments: Arguments) -> serde_json::Value {
    let text = match call.arguments.as_str().trim() {
        "" => "{}", // some servers write so where there are none
        text => text,
    };
    let parsed = match arguments {
        Arguments::Object => serde_json::from_str(text).ok(),
        Arguments::Text => None,
    };
    let arguments: serde_json::Value = parsed.unwrap_or_else(|| text.into());
    json!({"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}})
}

/// Whether the template asks for content that is none, as an assistant's is that only called. DeepSeek's looks for
/// calls there alone; others, Qwen3's for one, search a text and fail on none, so they get an empty one.
fn takes_no_content(source: &str) -> bool {
    ["content is none", "content'] is none", "content\"] is none"].iter().any(|asks| source.contains(asks))
}

/// Name of the one template in its environment; no extension, so nothing is escaped.
const NAME: &str = "chat_template";

/// The environment of `transformers.utils.chat_template_utils`.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    operators::define(&mut environment);
    filters::define(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment
}

/// `strftime_now(format)`: writes this instant.
fn strftime_now(today: Timestamp) -> Value {
    Value::from_function(move |format: &str| date::strftime(today, format))
}

/// `raise_exception(message)`: ends the rendering, the conversation being at fault.
fn raise_exception(message: &str, _: Rest<Value>, _: Kwargs) -> Result<Value, minijinja::Error> {
    let message = message.chars().take(REFUSAL_CHARS_MAX).collect();
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(message)))
}

/// The cause that [`raise_exception`] leaves, to be found again by [`ChatTemplate::blame`].
#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refusal(String);

/// A writer that takes [`PROMPT_BYTES_MAX`] bytes and no more.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    overrun: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > PROMPT_BYTES_MAX - self.bytes.len() {
            self.overrun = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Role;
    use proptest::prelude::*;

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, SpecialTokens::default())?.render(messages, &TemplateOptions::default())
    }

    fn talk() -> [ChatMessage; 2] {
        [ChatMessage::new(Role::User, "my secret"), ChatMessage::new(Role::Assistant, "ok")]
    }

    #[test]
    fn a_template_is_shared_between_threads() {
        fn shared<T: Send + Sync + Clone>() {}
        shared::<ChatTemplate>();
    }

    #[test]
    fn fuel_stops_a_loop_without_end() {
        let nested = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
        assert_eq!(render(nested, &[]), Err(TemplateError::OutOfFuel));
        let macros = "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(render(macros, &[]), Err(TemplateError::Failed { .. } | TemplateError::OutOfFuel)));
        let wide = "{% for i in range(10**9) %}{% endfor %}";
        assert!(matches!(render(wide, &[]), Err(TemplateError::Failed { .. } | TemplateError::OutOfFuel)));
    }

    #[test]
    fn what_is_built_along_the_way_has_an_end() {
        let doubled = |step: &str| {
            let list = if step.contains("ns.l") { "[1] * 99999" } else { "[]" };
            let start = format!("{{% set ns = namespace(s='x' * 4000000, short='x' * 4000, l={list}) %}}");
            format!("{start}{{% for i in range(40) %}}{step}{{% endfor %}}")
        };
        for step in [
            "{% set ns.s = ns.s + ns.s %}",
            "{% set ns.s = ns.s ~ ns.s %}",
            "{% set ns.s = ns.s * 9 %}",
            "{% set ns.s = '%s%s' % (ns.s, ns.s) %}",
            "{% set ns.s = [ns.s, ns.s] | join %}",
            "{% set ns.s = ns.s.join(['', '', '']) ~ ns.s %}",
            "{% set ns.short = ns.short | replace('x', ns.short) %}",
            "{% set ns.short = ns.short.replace('', ns.short) %}",
            "{% set ns.s = ns.s.center(ns.s | length * 2) %}",
            "{% set ns.s = '{}{}'.format(ns.s, ns.s) %}",
            "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}",
            "{% set ns.l = ns.l + ns.l %}",
            "{% set ns.l = ns.l * 9 %}",
            "{% set ns.s = [ns.s, ns.s] | string %}",
            "{% set ns.s = [ns.s, ns.s] | tojson %}",
            "{% set ns.s = 'x' | indent(99999999, true) %}",
            "{% set ns.l = [1] | batch(99999999, 1) | list %}",
            "{% set ns.l = [ns.l, 'x' * 8000000] %}",
        ] {
            assert_eq!(render(&doubled(step), &[]), Err(TemplateError::OutOfMemory), "{step}");
        }
    }

    #[test]
    fn a_long_conversation_is_within_the_budget() {
        let source = "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content | trim + '</>' }}{% endfor %}";
        let messages: Vec<ChatMessage> =
            (0..2000).map(|_| ChatMessage::new(Role::User, "x".repeat(1000).as_str())).collect();
        assert!(render(source, &messages).unwrap().len() > 2_000_000);
    }

    #[test]
    fn a_prompt_has_an_end() {
        let long = format!("{{% for i in range(90000) %}}{}{{% endfor %}}", "x".repeat(100));
        assert_eq!(render(&long, &[]), Err(TemplateError::PromptTooLong));
        let source = "x".repeat(SOURCE_BYTES_MAX + 1);
        assert_eq!(render(&source, &[]), Err(TemplateError::SourceTooLong(SOURCE_BYTES_MAX + 1)));
    }

    #[test]
    fn functions_are_refused_by_a_template_that_has_no_place_for_them() {
        let tool: Tool = serde_json::from_value(json!({"name": "now"})).unwrap();
        let options = TemplateOptions { tools: vec![tool], ..TemplateOptions::default() };
        let check = |source: &str, expected: Result<&str, TemplateError>| {
            let template = ChatTemplate::new(source, SpecialTokens::default()).unwrap();
            assert_eq!(template.render(&[], &options), expected.map(str::to_owned), "{source}");
            assert_eq!(template.supports_tools(), template.call_format().is_some());
        };
        check("{{ tools[0].function.name }}", Ok("now"));
        check("{% if x is defined %}{% set tools = x %}{% endif %}{{ tools[0].function.name }}", Ok("now"));
        check("{% macro f() %}{{ tools | length }}{% endmacro %}{{ f() }}", Ok("1"));
        for source in
            ["hi", "no tools", "{# tools #}", "{{ message.tools }}", "{% set tools = 1 %}{{ tools }}"]
        {
            check(source, Err(TemplateError::ToolsUnsupported));
        }
    }

    #[test]
    fn a_callers_variable_hides_nothing() {
        let extra = json!({"messages": 1, "tools": 1, "eos_token": "x", "mine": "y", "raise_exception": 2});
        let options =
            TemplateOptions { extra: extra.as_object().unwrap().clone(), ..TemplateOptions::default() };
        let source = "{{ messages | length }}{{ tools }}{{ eos_token }}{{ mine }}{{ raise_exception('no') }}";
        let template = ChatTemplate::new(source, SpecialTokens::default()).unwrap();
        assert_eq!(template.render(&[], &options), Err(TemplateError::Refused(Some("no".into()))));
        let template = ChatTemplate::new(&source[..source.len() - 27], SpecialTokens::default()).unwrap();
        assert_eq!(template.render(&[], &options).unwrap(), "0Noney");
    }

    #[test]
    fn errors_say_whose_fault_and_quote_nobody() {
        let errors = [
            (render("\n\n{% if %}", &[]), "the chat template does not parse, line 3"),
            (render("{{ raise_exception('Only users') }}", &talk()), "refuses the conversation: Only users"),
            (
                render("{{ raise_exception('Not ' ~ messages[0].content) }}", &talk()),
                "refuses the conversation",
            ),
            (render("\n{{ messages[0].content + 1 }}", &talk()), "the chat template fails in line 2"),
            (render("{{ messages[0].content | abs }}", &talk()), "the chat template fails in line 1"),
            (
                render("{{ messages[0].content.fly() }}", &talk()),
                "the chat template fails in line 1: unknown method",
            ),
        ];
        for (error, words) in errors {
            let error = error.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(words), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn a_template_sees_no_files_and_no_other_templates() {
        for source in ["{% include '/etc/passwd' %}", "{% extends 'base' %}", "{% import 'os' as os %}"] {
            assert!(render(source, &[]).is_err(), "{source}");
        }
        assert_eq!(render("{{ open is defined }}{{ ''.__class__ is defined }}", &[]).unwrap(), "FalseFalse");
    }

    #[test]
    fn today_is_what_the_caller_says() {
        let source =
            "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}";
        let template = ChatTemplate::new(source, SpecialTokens::default()).unwrap();
        let on =
            |today| template.render(&[], &TemplateOptions { today, ..TemplateOptions::default() }).unwrap();
        assert_eq!(on(None), "26 Jul 2024");
        assert_eq!(on(Some(Timestamp::from_millis(1_700_000_000_000))), "14 Nov 2023");
    }

    #[test]
    fn variables_of_the_caller_do_not_hide_the_conversation() {
        let mut options = TemplateOptions::default();
        options.extra.insert("messages".to_owned(), "mine".into());
        let template = ChatTemplate::new("{{ messages | length }}", SpecialTokens::default()).unwrap();
        assert_eq!(template.render(&talk(), &options).unwrap(), "2");
    }

    /// Sources made of what the parser and the renderer look for.
    fn sources() -> impl Strategy<Value = String> {
        let parts = [
            "{{ ",
            " }}",
            "{% ",
            " %}",
            "{%- ",
            " -%}",
            "{# ",
            " #}",
            "if ",
            "for x in ",
            "messages",
            "endfor",
            "endif",
            "else",
            "set x = ",
            "x",
            "generation",
            "endgeneration",
            "macro f(a)",
            "endmacro",
            "f(1)",
            "[0]",
            "['role']",
            ".content",
            "|tojson",
            "|trim",
            "|sort",
            " + ",
            " ~ ",
            " % ",
            " ** ",
            "//",
            "1",
            "0",
            "-1",
            "'a'",
            "\"",
            "\\",
            "\n",
            "namespace(a=1)",
            "range(9)",
            ".split('')",
            ".rsplit()",
            "raise_exception(x)",
            "loop.index",
            "break",
            "strftime_now('%')",
            "[::-1]",
            "{",
            "}",
            "(",
            ")",
            "[",
            "]",
            ":",
            ",",
            "é",
            "not ",
            "is defined",
        ];
        proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..30)
            .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn no_template_panics(source in sources(), noise: String) {
            let _ = render(&source, &talk());
            let _ = render(&noise, &talk());
        }

        #[test]
        fn words_of_a_user_are_never_template(words: String) {
            let messages = [ChatMessage::new(Role::User, words.as_str())];
            prop_assert_eq!(render("[{{ messages[0].content }}]", &messages).unwrap(), format!("[{words}]"));
        }

        #[test]
        fn a_date_is_written_for_any_instant(millis: u64, format: String) {
            let _ = date::strftime(Timestamp::from_millis(millis), &format);
            let year = date::strftime(Timestamp::from_millis(millis), "%Y");
            prop_assert!(year.parse::<u64>().unwrap() >= 1970);
        }
    }
}
