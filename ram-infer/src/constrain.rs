//! Holds an answer to a format: before each token it says which tokens may come.
//!
//! ```text
//! ResponseFormat -> grammar -> Matcher (llguidance) -> a bit for each token of the vocabulary -> Sampler
//! ```
//!
//! A model that thinks first may do so: the format begins behind `</think>`. The end of the answer is possible only
//! where the format may end, and an answer that cannot go on is over without a word of the model.
//!
//! Formats are a stranger's. Their size is bounded ([`ResponseFormat::check`]), and so is the work of compiling one and
//! of each step; they are compiled on a thread with a stack of its own, for schemas are read by recursion.
//!
//! Start at [`Formats::compile`].

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::thread;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use ram_core::chat::reasoning::{CLOSE, OPEN, Start};
use ram_core::format::{ResponseFormat, Syntax};
use ram_core::job::Failure;
use serde_json::{Value, json};

use crate::tokenize::Tokenizer;

/// Compiles formats for one vocabulary.
pub struct Formats {
    tokenizer: Arc<Tokenizer>,
    /// Tokens that the model has logits for.
    vocab_size: usize,
    /// Tokens that end an answer.
    end_tokens: Arc<[u32]>,
    /// Made when first needed: a copy of the vocabulary, as a tree of bytes.
    vocabulary: OnceLock<Result<Arc<Vocabulary>, FormatFault>>,
}

/// A vocabulary as grammars see it.
struct Vocabulary {
    factory: ParserFactory,
    words: TokEnv,
    /// Tokens of a thought: all but those that end the answer, or the thought in the midst of a token.
    thought: SimpleVob,
    /// Tokens that are nothing but line breaks.
    breaks: SimpleVob,
}

/// Why an answer cannot be held to a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatFault {
    /// The format is over a limit, impossible, or uses what cannot be enforced.
    #[error("the format is impossible, too large, or asks for what cannot be enforced")]
    Invalid,
    /// The vocabulary has a shape that no grammar can be laid over.
    #[error("the model's vocabulary cannot be held to a format")]
    Vocabulary,
    /// The next step would take too much work, or no token is possible.
    #[error("the answer has come to where its format cannot be followed")]
    Stuck,
}

impl From<FormatFault> for Failure {
    fn from(fault: FormatFault) -> Self {
        match fault {
            FormatFault::Invalid | FormatFault::Vocabulary => Self::InvalidFormat,
            FormatFault::Stuck => Self::FormatFailed,
        }
    }
}

/// The format of one answer, and how far it has been followed.
pub struct Constraint {
    vocabulary: Arc<Vocabulary>,
    matcher: Matcher,
    place: Place,
    /// What may come next, where that is known.
    allowed: Option<SimpleVob>,
}

/// Where in the answer the next token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At its beginning, where this token opens a thought.
    Beginning(u32),
    /// In a thought that ends with so many bytes of its closing tag.
    Thought(usize),
    /// Behind a thought and so many tokens of line breaks.
    Closed(u8),
    /// In what the format is about.
    Answer,
}

impl Formats {
    /// A compiler for a vocabulary of which the model has `vocab_size` logits and ends answers with `end_tokens`.
    #[must_use]
    pub const fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, end_tokens: Arc<[u32]>) -> Self {
        Self { tokenizer, vocab_size, end_tokens, vocabulary: OnceLock::new() }
    }

    /// The constraint on the answer to `prompt`; none where any text will do.
    ///
    ///
    /// # Errors
    /// [`FormatFault::Invalid`] for a format that cannot be followed from its first token on;
    /// [`FormatFault::Vocabulary`].
    pub fn compile(
        &self,
        format: &ResponseFormat,
        prompt: &[u32],
    ) -> Result<Option<Constraint>, FormatFault> {
        format.check().map_err(|_| FormatFault::Invalid)?;
        let Some(grammar) = grammar(format) else { return Ok(None) };
        let vocabulary = Arc::clone(self.vocabulary()?);
        let place = self.place(prompt);
        let compiled = on_large_stack(|| {
            let matcher = Matcher::new(vocabulary.factory.create_parser(grammar));
            let mut constraint =
                Constraint { vocabulary: Arc::clone(&vocabulary), matcher, place, allowed: None };
            constraint.check_beginning().map(|()| constraint)
        });
        compiled.unwrap_or(Err(FormatFault::Invalid)).map(Some)
    }

    /// Where the answer to `prompt` begins.
    fn place(&self, prompt: &[u32]) -> Place {
        match self.tokenizer.answer_start(prompt) {
            Start::Reasoning => Place::Thought(0),
            Start::Answer if self.tokenizer.thought_is_closed(prompt) => Place::Answer,
            Start::Answer => self
                .tokenizer
                .token(OPEN)
                .filter(|token| self.knows(*token))
                .map_or(Place::Answer, Place::Beginning),
        }
    }

    fn knows(&self, token: u32) -> bool {
        usize::try_from(token).is_ok_and(|token| token < self.vocab_size)
    }

    fn vocabulary(&self) -> Result<&Arc<Vocabulary>, FormatFault> {
        let read = || on_large_stack(|| self.read_vocabulary()).unwrap_or(Err(FormatFault::Vocabulary));
        self.vocabulary.get_or_init(read).as_ref().map_err(|fault| *fault)
    }

    fn read_vocabulary(&self) -> Result<Arc<Vocabulary>, FormatFault> {
        let vocab_size = u32::try_from(self.vocab_size).ok().filter(|size| *size > 0 && *size < VOCAB_MAX);
        let vocab_size = vocab_size.ok_or(FormatFault::Vocabulary)?;
        let words: Vec<Vec<u8>> = (0..vocab_size).map(|token| self.word(token)).collect();
        let ends: Vec<u32> = self.end_tokens.iter().copied().filter(|token| self.knows(*token)).collect();
        let mut trie = TokTrie::from(&TokRxInfo::new(vocab_size, INVALID_TOKEN), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let mut thought = trie.alloc_token_set();
        let mut breaks = trie.alloc_token_set();
        for (token, word) in (0..).zip(&words) {
            if !ends.contains(&token) && !ends_thought_inside(word, 0) {
                thought.allow_token(token);
            }
            if !word.is_empty() && is_blank(word) {
                breaks.allow_token(token);
            }
        }
        // How the model parts forced text into tokens is left to itself: any tokens that spell it will do.
        let words: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&words).map_err(|_| FormatFault::Vocabulary)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = LEXER_STATES_MAX;
        limits.max_grammar_size = GRAMMAR_SYMBOLS_MAX;
        Ok(Arc::new(Vocabulary { factory, words, thought, breaks }))
    }

    /// The bytes by which a grammar knows a token; none for one that no grammar can mean.
    fn word(&self, token: u32) -> Vec<u8> {
        let bytes = self.tokenizer.text_bytes(token);
        // No text holds the byte 0xff, with which the trie begins names of special tokens.
        let good = bytes.len() <= WORD_BYTES_MAX && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
        if good { bytes } else { Vec::new() }
    }
}

impl fmt::Debug for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Formats").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Constraint {
    /// Which tokens may come next: bit `t % 32` of word `t / 32` is that of token `t`. Tokens beyond the last word may
    /// not.
    ///
    /// # Errors
    /// [`FormatFault::Stuck`] when there is none, or finding out takes too much work.
    pub fn allowed(&mut self) -> Result<&[u32], FormatFault> {
        let allowed = match self.allowed.take() {
            Some(known) => known,
            None => self.next_allowed()?,
        };
        Ok(self.allowed.insert(allowed).as_slice())
    }

    /// Takes in the token that was picked, one that was allowed and does not end the answer.
    ///
    /// # Errors
    /// [`FormatFault::Stuck`] when it was not allowed, or what it leads to takes too much work.
    pub fn commit(&mut self, token: u32) -> Result<(), FormatFault> {
        self.allowed = None;
        self.place = match self.place {
            Place::Beginning(open) if open == token => Place::Thought(0),
            Place::Thought(matched) => {
                let mut matched = matched;
                let word = self.vocabulary.words.tok_trie().token(token);
                match word.iter().position(|byte| close_after(&mut matched, *byte)) {
                    Some(_) => Place::Closed(0), // What follows in this token are line breaks.
                    None => Place::Thought(matched),
                }
            }
            Place::Closed(breaks) if breaks < BREAKS_MAX && self.vocabulary.breaks.is_allowed(token) => {
                Place::Closed(breaks + 1)
            }
            Place::Beginning(_) | Place::Closed(_) | Place::Answer => {
                self.matcher.consume_token(token).map_err(|_| FormatFault::Stuck)?;
                Place::Answer
            }
        };
        Ok(())
    }

    /// Whether the answer is whole and nothing can follow.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.place == Place::Answer && self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// Finds out what may come next.
    fn next_allowed(&mut self) -> Result<SimpleVob, FormatFault> {
        let Vocabulary { words, thought, breaks, .. } = &*self.vocabulary;
        if let Place::Thought(matched) = self.place {
            let mut allowed = thought.clone();
            if matched > 0 {
                let trie = words.tok_trie();
                for token in (0..).take(trie.vocab_size()) {
                    if ends_thought_inside(trie.token(token), matched) {
                        allowed.disallow_token(token);
                    }
                }
            }
            return Ok(allowed);
        }
        let mut allowed = self.matcher.compute_mask_or_eos().map_err(|_| FormatFault::Stuck)?;
        match self.place {
            Place::Beginning(open) => allowed.allow_token(open),
            Place::Closed(count) if count < BREAKS_MAX => allowed.or(breaks),
            _ => {}
        }
        if allowed.is_zero() { Err(FormatFault::Stuck) } else { Ok(allowed) }
    }

    /// Checks that the format itself can begin, also where a thought comes first.
    fn check_beginning(&mut self) -> Result<(), FormatFault> {
        let first = self.matcher.compute_mask_or_eos().map_err(|_| FormatFault::Invalid)?;
        if first.is_zero() { Err(FormatFault::Invalid) } else { Ok(()) }
    }
}

impl fmt::Debug for Constraint {
    /// The place alone: the rest is words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The grammar of a format; none for free text.
fn grammar(format: &ResponseFormat) -> Option<TopLevelGrammar> {
    let grammar = match format {
        ResponseFormat::Text => return None,
        ResponseFormat::JsonObject => json_grammar(json!({"type": "object"}), true),
        ResponseFormat::JsonSchema { schema, strict } => {
            json_grammar(Value::Object(schema.as_object().clone()), *strict)
        }
        ResponseFormat::Grammar { syntax: Syntax::Regex, definition } => {
            GrammarWithLexer::from_regex(definition.as_str())
        }
        ResponseFormat::Grammar { syntax: Syntax::Lark, definition } => {
            GrammarWithLexer::from_lark(definition.as_str().to_owned())
        }
    };
    Some(TopLevelGrammar::from_grammar(grammar))
}

/// The grammar of a schema's JSON.
fn json_grammar(mut schema: Value, strict: bool) -> GrammarWithLexer {
    // The compiler's own settings stand under this key, so that a caller's are overwritten.
    schema["x-guidance"] = json!({
        "whitespace_pattern": WHITE_SPACE,
        "lenient": !strict,
        "coerce_one_of": !strict,
    });
    GrammarWithLexer::from_json_schema(schema)
}

/// Takes one byte of a thought into account: `matched` bytes before it were the beginning of the closing tag. Returns
/// whether the tag is whole now.
const fn close_after(matched: &mut usize, byte: u8) -> bool {
    let close = CLOSE.as_bytes();
    *matched = if byte == close[*matched] {
        *matched + 1
    } else {
        (byte == close[0]) as usize // The tag begins nowhere inside of itself.
    };
    if *matched == close.len() {
        *matched = 0;
        return true;
    }
    false
}

/// Whether a token would end a thought and go on with words.
fn ends_thought_inside(word: &[u8], matched: usize) -> bool {
    let mut matched = matched;
    let end = word.iter().position(|byte| close_after(&mut matched, *byte));
    end.is_some_and(|end| !is_blank(&word[end + 1..]))
}

/// Whether there are only line breaks, which leave with the tag before them.
fn is_blank(word: &[u8]) -> bool {
    word.iter().all(|byte| matches!(byte, b'\n' | b'\r'))
}

/// Runs what recurses over a stranger's input. `None` when it panics, or there is no thread.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        spawned.ok()?.join().ok()
    })
}

/// The longest stack that a schema within the limits needs is a tenth of this.
const STACK_BYTES: usize = 64 << 20;
/// White space between two signs of JSON: a blank, or a new line with its indent. Were any allowed, a model that would
/// rather write something else could fill its answer with it.
const WHITE_SPACE: &str = r" |\r?\n[ \t]{0,32}";
/// Tokens of line breaks between a thought and the answer.
const BREAKS_MAX: u8 = 4;
/// Ids that a trie can hold.
const VOCAB_MAX: u32 = 1 << 21;
/// The longest token that a trie can hold is twice this long.
const WORD_BYTES_MAX: usize = 512;
/// States of a lexer, so that one answer cannot fill the memory.
const LEXER_STATES_MAX: usize = 20_000;
/// Symbols of a grammar: a schema of 64 KiB has some 40,000.
const GRAMMAR_SYMBOLS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sampler;
    use crate::tokenize::tests::byte_level;
    use proptest::prelude::*;
    use ram_core::job::Sampling;
    use serde_json::value::RawValue;
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    /// A byte a token, and some words.
    static FORMATS: LazyLock<Formats> = LazyLock::new(|| {
        let words = ["{\"", "\":", "\", \"", "true", "</", "think", ">{", "12", "\n\n"];
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let tokenizer = Arc::new(byte_level(&words));
        let end = tokenizer.end_token().unwrap();
        Formats::new(tokenizer, 256 + words.len() + 8, Arc::new([end]))
    });

    fn end() -> u32 {
        FORMATS.end_tokens[0]
    }

    fn schema(schema: &Value, strict: bool) -> ResponseFormat {
        ResponseFormat::JsonSchema { schema: serde_json::from_value(schema.clone()).unwrap(), strict }
    }

    fn lark(definition: &str) -> ResponseFormat {
        ResponseFormat::Grammar { syntax: Syntax::Lark, definition: definition.into() }
    }

    fn regex(definition: &str) -> ResponseFormat {
        ResponseFormat::Grammar { syntax: Syntax::Regex, definition: definition.into() }
    }

    /// The tokens of a prompt that has no thought to come.
    fn closed() -> Vec<u32> {
        FORMATS.tokenizer.encode_text("<think></think>").unwrap()
    }

    fn compile(format: &ResponseFormat, prompt: &[u32]) -> Result<Constraint, FormatFault> {
        FORMATS.compile(format, prompt).map(|constraint| constraint.expect("is no free text"))
    }

    fn is_allowed(constraint: &mut Constraint, token: u32) -> bool {
        let words = constraint.allowed().unwrap();
        words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Whether a text, byte by byte, is a whole answer.
    fn takes(constraint: &mut Constraint, text: &str) -> bool {
        let all = text.bytes().all(|byte| {
            let token = u32::from(byte);
            !constraint.is_done() && is_allowed(constraint, token) && constraint.commit(token).is_ok()
        });
        all && (constraint.is_done() || is_allowed(constraint, end()))
    }

    fn check(format: &ResponseFormat, good: &[&str], bad: &[&str]) {
        for (text, expected) in
            good.iter().map(|text| (text, true)).chain(bad.iter().map(|text| (text, false)))
        {
            let mut constraint = compile(format, &closed()).unwrap();
            assert_eq!(takes(&mut constraint, text), expected, "{text:?}");
        }
    }

    #[test]
    fn each_format_takes_what_it_means_and_nothing_else() {
        check(
            &ResponseFormat::JsonObject,
            &["{}", "{ \"a\" : [1, null] }"],
            &["[]", "", "{", "{}{}", "a", " {}"],
        );
        let object = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 3},
            "age": {"type": "integer", "minimum": 0}}, "required": ["name", "age"], "additionalProperties": false});
        let good = ["{\"name\":\"é<a\",\"age\":30}", "{\n  \"name\": \"\",\n  \"age\": 0\n}"];
        let bad = ["{\"name\":\"long\",\"age\":1}", "{\"name\":\"\"}", "{\"name\":\"\",\"age\":-1}", "{}"];
        check(&schema(&object, true), &good, &bad);
        check(&regex("[a-c]{2}x?"), &["ab", "cax"], &["a", "abxx", "dd"]);
        check(&lark("start: \"yes\" | \"no\" rest\nrest: /[!?]+/"), &["yes", "no!?"], &["no", "yes!", ""]);
        assert!(FORMATS.compile(&ResponseFormat::Text, &[97]).unwrap().is_none());
    }

    #[test]
    fn a_keyword_that_cannot_be_enforced_is_refused_where_the_schema_is_strict() {
        for unknown in
            [json!({"type": "array", "uniqueItems": true}), json!({"type": "string", "format": "tea"})]
        {
            assert_eq!(compile(&schema(&unknown, true), &[97]).err(), Some(FormatFault::Invalid));
            assert!(compile(&schema(&unknown, false), &[97]).is_ok());
        }
        let mine = json!({"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}});
        assert_eq!(
            compile(&schema(&mine, true), &[97]).err(),
            Some(FormatFault::Invalid),
            "settings are ours"
        );
    }

    #[test]
    fn what_is_impossible_is_refused_at_once() {
        let impossible = [
            json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
            json!({"$ref": "#"}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"$ref": "#/$defs/none"}),
            json!({"$ref": "https://example.com/schema"}),
            json!({"type": "tea"}),
            json!({"type": "string", "pattern": "("}),
        ];
        for format in impossible.iter().map(|impossible| schema(impossible, true)) {
            assert_eq!(compile(&format, &[97]).err(), Some(FormatFault::Invalid));
        }
        for format in [regex("("), lark("start: nothing"), lark("tea"), lark("start: \"a\" <|none|>")] {
            assert_eq!(compile(&format, &[97]).err(), Some(FormatFault::Invalid));
        }
    }

    #[test]
    fn the_answer_ends_where_the_format_does() {
        let mut constraint = compile(&regex("ab?"), &closed()).unwrap();
        assert!(!is_allowed(&mut constraint, end()));
        constraint.commit(97).unwrap();
        assert!(is_allowed(&mut constraint, end()) && !constraint.is_done());
        constraint.commit(98).unwrap();
        assert!(constraint.is_done());
        let mut other = compile(&regex("ab?"), &closed()).unwrap();
        assert_eq!(other.commit(99), Err(FormatFault::Stuck), "a token that was not allowed");
    }

    #[test]
    fn a_thought_comes_first_where_the_model_has_them() {
        let tokenizer = &FORMATS.tokenizer;
        let open = tokenizer.token(OPEN).unwrap();
        let token =
            |text: &str| (0..280).find(|&token| tokenizer.text_bytes(token) == text.as_bytes()).unwrap();
        let format = ResponseFormat::JsonObject;

        let mut constraint = compile(&format, &[97]).unwrap();
        assert!(is_allowed(&mut constraint, open) && is_allowed(&mut constraint, token("{")));
        assert!(takes(&mut constraint, "{}"), "it need not think");

        let mut constraint = compile(&format, &[97]).unwrap();
        constraint.commit(open).unwrap();
        for text in ["a", "</", "think", "</", "<"] {
            assert!(is_allowed(&mut constraint, token(text)) && !is_allowed(&mut constraint, end()));
            constraint.commit(token(text)).unwrap();
        }
        for text in ["/", "think"] {
            constraint.commit(token(text)).unwrap();
        }
        assert!(!is_allowed(&mut constraint, token(">{")), "the answer begins with a token of its own");
        constraint.commit(token(">")).unwrap();
        assert!(!constraint.is_done());
        constraint.commit(token("\n\n")).unwrap();
        assert!(!is_allowed(&mut constraint, token("a")));
        assert!(takes(&mut constraint, "{}"));

        let prompt = tokenizer.encode_text("<think>\n").unwrap();
        let mut constraint = compile(&format, &prompt).unwrap();
        assert!(is_allowed(&mut constraint, token("a")) && !is_allowed(&mut constraint, end()));
    }

    #[test]
    fn hostile_formats_end_within_bounds() {
        let many = |count: usize, value: Value| -> Value {
            let properties: serde_json::Map<_, _> =
                (0..count).map(|n| (format!("p{n}"), value.clone())).collect();
            json!({"type": "object", "properties": properties})
        };
        let chain: serde_json::Map<_, _> =
            (0..255).map(|n| (format!("d{n}"), json!({"$ref": format!("#/$defs/d{}", n + 1)}))).collect();
        let options = |k: usize| -> Value {
            let options = (0..6).map(|i| many(1, json!({"const": k * i})));
            json!({"anyOf": options.collect::<Vec<_>>()})
        };
        let schemas = [
            many(256, json!({"type": "string"})),
            json!({"$defs": chain, "$ref": "#/$defs/d0"}),
            json!({"allOf": (0..20).map(options).collect::<Vec<_>>()}),
            json!({"type": "string", "minLength": 1_000_000_000}),
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}),
            json!({"type": "string", "pattern": "^.*[ab].{200}[cd].{300}$"}),
            json!({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}),
            json!({"type": "integer", "multipleOf": 997, "maximum": 1e300}),
            json!({"const": "x".repeat(60_000)}),
            json!({"enum": (0..5000).map(|n| n.to_string()).collect::<Vec<_>>()}),
            json!({"$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}},
                "required": ["c"]}}, "$ref": "#/$defs/n"}),
        ];
        for (schema, seed) in schemas.iter().zip(0..) {
            if let Ok(constraint) = compile(&self::schema(schema, true), &closed()) {
                let _ = write(constraint, seed, 200);
            }
        }
        for definition in ["(", "((((a*)*)*)*)*", "(a|b|ab)*{1000}", "a{100000}{100000}", "[^a]*a.{500}"] {
            if let Ok(constraint) = compile(&regex(definition), &closed()) {
                let _ = write(constraint, 1, 200);
            }
        }
        let nested = format!("start: {}\"a\"{}", "(".repeat(2000), ")".repeat(2000));
        let deep: String = (0..500).map(|n| format!("r{n}: r{} | r{}\n", n + 1, n + 1)).collect();
        for definition in [nested, deep + "r500: \"a\"\nstart: r0", "start: start start | \"a\"".into()] {
            if let Ok(constraint) = compile(&lark(&definition), &closed()) {
                let _ = write(constraint, 1, 50);
            }
        }
    }

    /// An answer of random tokens that the format allows, and whether it is whole.
    fn write(
        mut constraint: Constraint,
        seed: u64,
        tokens_max: usize,
    ) -> Result<(String, bool), FormatFault> {
        let sampling = Sampling { seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[]);
        let mut bytes = Vec::new();
        for step in 0..tokens_max {
            // Later on it rather closes what is open.
            let wish = |token| {
                if "\"}]".chars().any(|end| u32::from(end) == token) { step as f32 / 20.0 } else { 0.0 }
            };
            let logits: Vec<f32> = (0..).take(FORMATS.vocab_size).map(wish).collect();
            let token = sampler.pick_among(&logits, Some(constraint.allowed()?)).unwrap().token;
            if token == end() {
                return Ok((String::from_utf8(bytes).unwrap(), true));
            }
            bytes.extend(FORMATS.tokenizer.text_bytes(token));
            constraint.commit(token)?;
            if constraint.is_done() {
                return Ok((String::from_utf8(bytes).unwrap(), true));
            }
        }
        Ok((String::from_utf8_lossy(&bytes).into_owned(), false))
    }

    /// A schema of a few shapes, all of them enforced.
    fn schemas() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!({"type": "null"})),
            Just(json!({"type": "boolean"})),
            (-50_i32..50, 0_i32..60).prop_map(|(low, more)| {
                json!({"type": "integer", "minimum": low, "maximum": low + more})
            }),
            (0_usize..3, 0_usize..5).prop_map(|(least, more)| {
                json!({"type": "string", "minLength": least, "maxLength": least + more})
            }),
            prop::collection::vec("[a-z\"\\\\é]{0,4}", 1..4).prop_map(|words| json!({ "enum": words })),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                (inner.clone(), 0_usize..2, 0_usize..3).prop_map(|(items, least, more)| {
                    json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
                }),
                (prop::collection::vec(inner.clone(), 1..4), 0_usize..4).prop_map(|(values, required)| {
                    let names = ["a", "b c", "\"é"];
                    let properties: serde_json::Map<_, _> =
                        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value)).collect();
                    let required: Vec<&String> = properties.keys().take(required).collect();
                    json!({"type": "object", "properties": properties, "required": required,
                        "additionalProperties": false})
                }),
                prop::collection::vec(inner, 1..3).prop_map(|options| json!({ "anyOf": options })),
            ]
        })
    }

    /// Whether a value is one of the schema's, for the shapes of [`schemas`].
    fn is_of(value: &Value, schema: &Value) -> bool {
        if let Some(options) = schema.get("anyOf") {
            return options.as_array().unwrap().iter().any(|option| is_of(value, option));
        }
        if let Some(words) = schema.get("enum") {
            return words.as_array().unwrap().contains(value);
        }
        let within = |size: usize, least: &str, most: &str| {
            let bound = |key: &str| usize::try_from(schema[key].as_u64().unwrap()).unwrap();
            (bound(least)..=bound(most)).contains(&size)
        };
        match (schema["type"].as_str().unwrap(), value) {
            ("null", Value::Null) | ("boolean", Value::Bool(_)) => true,
            ("integer", Value::Number(number)) => {
                // -0 is an integer, too, and reads as a float.
                let number = number.as_i64().or_else(|| (number.as_f64() == Some(0.0)).then_some(0));
                let range = schema["minimum"].as_i64().unwrap()..=schema["maximum"].as_i64().unwrap();
                number.is_some_and(|number| range.contains(&number))
            }
            ("string", Value::String(text)) => within(text.chars().count(), "minLength", "maxLength"),
            ("array", Value::Array(items)) => {
                within(items.len(), "minItems", "maxItems")
                    && items.iter().all(|item| is_of(item, &schema["items"]))
            }
            ("object", Value::Object(fields)) => {
                let known = |(key, value): (&String, &Value)| {
                    schema["properties"].get(key).is_some_and(|schema| is_of(value, schema))
                };
                let required = schema["required"].as_array().unwrap();
                fields.iter().all(known)
                    && required.iter().all(|key| fields.contains_key(key.as_str().unwrap()))
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn whatever_a_model_wants_its_json_is_of_the_schema(schema in schemas(), seed: u64) {
            let constraint = compile(&self::schema(&schema, true), &closed()).unwrap();
            let (text, whole) = write(constraint, seed, 600).unwrap();
            if whole {
                let value: Value = serde_json::from_str(&text).unwrap();
                prop_assert!(is_of(&value, &schema), "{text} is not of {schema}");
            }
        }

        #[test]
        fn whatever_a_model_wants_json_is_an_object(seed: u64) {
            let constraint = compile(&ResponseFormat::JsonObject, &closed()).unwrap();
            let (text, whole) = write(constraint, seed, 600).unwrap();
            if whole {
                // Read as far as grammar goes: a number may be larger than any float.
                let fields = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(&text);
                prop_assert!(fields.is_ok(), "{text}");
            }
        }
    }
}
