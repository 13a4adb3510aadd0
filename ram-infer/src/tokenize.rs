//! From words to tokens and back: `tokenizer.json`, the model's chat template, and text that streams.
//!
//! A prompt is tokenised as `transformers` does it: a conversation is rendered by the model's own template and encoded
//! as it stands (the template writes the begin token); a plain text gets the special tokens that `tokenizer.json`
//! adds.
//!
//! No text of a stranger is read as a control token: see `guard`.
//!
//! Start at [`Tokenizer::load`]; [`Detokenizer`] is the way back.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use ram_core::chat::calls::Format;
use ram_core::chat::reasoning::{CLOSE, Start};
use ram_core::chat::template::{ChatTemplate, SpecialTokens, TemplateOptions};
use ram_core::chat::{ChatMessage, PromptText};
use ram_core::units::Bytes;
use serde_json::Value;
use tokenizers::DecoderWrapper;

use crate::error::InferError;
use crate::folder;
use crate::guard::{Guard, Guarded};

/// A model's vocabulary, and how conversations are written in it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    template: Option<ChatTemplate>,
    guard: Guard,
    /// Special tokens that begin, part or end a call, by their spelling.
    marks: BTreeMap<u32, String>,
    end: Option<u32>,
}

/// How the vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// Each byte as a letter of its own (GPT-2, Llama 3, Qwen).
    ByteLevel,
    /// As text with `▁` for a space, and `<0xE2>` for a byte that is in no piece (SentencePiece).
    Pieces,
}

impl Tokenizer {
    /// Reads a model's folder: `tokenizer.json`, and for conversations `tokenizer_config.json` and the chat template.
    ///
    /// The template is `chat_template.jinja`, or else stands in `tokenizer_config.json`, or else in
    /// `chat_template.json`; of several named ones the `default` is taken. A model without one continues plain texts.
    ///
    /// # Errors
    /// [`InferError::MissingFile`] without `tokenizer.json`; [`InferError::MalformedTokenizer`],
    /// [`InferError::MalformedJson`] or [`InferError::Template`] when a file is not what its name says;
    /// [`InferError::Unreadable`] and [`InferError::FileTooLarge`].
    pub fn load(dir: &Path) -> Result<Self, InferError> {
        let vocabulary = folder::required(folder::read(dir, TOKENIZER, TOKENIZER_BYTES_MAX)?, TOKENIZER)?;
        let config = folder::read_json(dir, CONFIG, CONFIG_BYTES_MAX)?.unwrap_or_default();
        let template = template_source(dir, &config)?;
        Self::parse(&vocabulary, &config, template.as_deref())
    }

    /// A tokenizer from the files' contents.
    pub(crate) fn parse(
        vocabulary: &[u8],
        config: &Value,
        template: Option<&str>,
    ) -> Result<Self, InferError> {
        let malformed = |problem: String| InferError::MalformedTokenizer { problem };
        // The parser has `expect`s of its own, and the file is a stranger's.
        let parsed = panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(vocabulary))
            .map_err(|_| malformed("its decoder is of no known kind".to_owned()))?;
        let mut inner = parsed.map_err(|error| malformed(error.to_string()))?;
        // A file may keep the bounds of its training: prompts are not cut or filled up silently.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| malformed(error.to_string()))?;

        let special = special_tokens(config);
        let end = special.eos.as_deref().and_then(|token| inner.token_to_id(token));
        let template_source = template.unwrap_or_default();
        let template = template.map(|source| ChatTemplate::new(source, special)).transpose()?;
        let format = template.as_ref().and_then(ChatTemplate::call_format);
        let marks = format.map(Format::marks).unwrap_or_default().iter();
        let marks = marks.filter_map(|mark| Some((inner.token_to_id(mark)?, (*mark).to_owned()))).collect();
        Ok(Self {
            spelling: if inner.get_decoder().is_some_and(is_byte_level) {
                Spelling::ByteLevel
            } else {
                Spelling::Pieces
            },
            guard: Guard::new(&inner, template_source),
            marks,
            template,
            inner,
            end,
        })
    }

    /// Tokens of the vocabulary, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that ends a turn (`eos_token` of `tokenizer_config.json`).
    #[must_use]
    pub const fn end_token(&self) -> Option<u32> {
        self.end
    }

    /// Whether the model has a chat template.
    #[must_use]
    pub const fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// How the model writes calls of functions; `None` where its template has no place to tell it of any.
    #[must_use]
    pub fn call_format(&self) -> Option<Format> {
        self.template.as_ref()?.call_format()
    }

    /// The tokens of a conversation, up to the head of the answer.
    ///
    /// # Errors
    /// [`InferError::NoTemplate`] when the model has none; [`InferError::Template`] when it refuses the conversation,
    /// cannot be told of its functions, or fails on it; [`InferError::NotEncodable`] when the vocabulary has no word
    /// for it.
    pub fn encode_chat(
        &self,
        messages: &[ChatMessage],
        options: &TemplateOptions,
    ) -> Result<Vec<u32>, InferError> {
        let template = self.template.as_ref().ok_or(InferError::NoTemplate)?;
        let Some(Guarded { messages, options, seam }) = self.guard.apply(messages, options)? else {
            return self.encode(&template.render(messages, options)?, false);
        };
        let rendered = template.render(&messages, &options)?;
        let mut tokens = Vec::new();
        for piece in rendered.split(seam).filter(|piece| !piece.is_empty()) {
            tokens.extend(self.encode(piece, false)?);
        }
        Ok(tokens)
    }

    /// Where the answer to this prompt begins: inside reasoning where the prompt ends with its open tag.
    #[must_use]
    pub fn answer_start(&self, prompt: &[u32]) -> Start {
        let end = &prompt[prompt.len().saturating_sub(START_TOKENS)..];
        self.decode(end).map_or(Start::Answer, |text| Start::after_prompt(&text))
    }

    /// Whether the prompt ends with a thought that it has closed itself, so that no other is to be expected.
    #[must_use]
    pub(crate) fn thought_is_closed(&self, prompt: &[u32]) -> bool {
        let end = &prompt[prompt.len().saturating_sub(START_TOKENS)..];
        self.decode(end).is_ok_and(|text| text.trim_end().ends_with(CLOSE))
    }

    /// The tokens of a plain text, with those that the tokenizer puts before and after it. Whoever writes the whole
    /// prompt writes its control tokens too: they are read as such.
    ///
    /// # Errors
    /// [`InferError::NotEncodable`] when the vocabulary has no word for it.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, InferError> {
        self.encode(text, true)
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, InferError> {
        // What the tokenizer says of a failure may quote the text, so it is not kept.
        let encoded =
            panic::catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special_tokens)));
        match encoded {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            _ => Err(InferError::NotEncodable),
        }
    }

    /// The text of `tokens`, without special ones; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`InferError::MalformedTokenizer`] when the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, InferError> {
        self.inner
            .decode(tokens, true)
            .map_err(|_| InferError::MalformedTokenizer { problem: "its decoder fails".to_owned() })
    }

    /// The very bytes of one token, special or not; none for a number that is no token.
    #[must_use]
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        let Some(text) = self.inner.id_to_token(token) else { return Vec::new() };
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&token) {
            return text.into_bytes();
        }
        match self.spelling {
            Spelling::ByteLevel => {
                let bytes: Option<Vec<u8>> = text.chars().map(byte_of_letter).collect();
                bytes.unwrap_or_else(|| text.into_bytes())
            }
            Spelling::Pieces => {
                byte_of_piece(&text).map_or_else(|| text.replace('▁', " ").into_bytes(), |byte| vec![byte])
            }
        }
    }

    /// The bytes that a token adds to a text: none for a special one, which is left out, and for no token.
    #[must_use]
    pub(crate) fn text_bytes(&self, token: u32) -> Vec<u8> {
        if self.is_special(token) { Vec::new() } else { self.token_bytes(token) }
    }

    /// The token that is spelled so.
    #[must_use]
    pub(crate) fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// Whether the token is left out of texts.
    fn is_special(&self, token: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&token).is_some_and(|token| token.special)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("spelling", &self.spelling)
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}

/// Turns tokens into text as they come, in whole characters.
///
/// The pieces joined are the text of all tokens together, though a tokenizer decodes a token differently at the start
/// of a text than inside of it, and a character may take several tokens. Each token is decoded behind a window of the
/// last ones, and only the difference is new; the window is bounded, so a token costs the same at any length.
///
/// One exception: where SentencePiece bytes are no UTF-8, `transformers` replaces the whole run of byte tokens, also
/// the characters in it that were whole; here what was whole is said already, and stays.
#[derive(Clone, Default)]
pub struct Detokenizer {
    /// Whether the marks of calls are text.
    shows_marks: bool,
    window: Vec<u32>,
    /// What the window's text was when it was last said, but for an unfinished character at its end.
    said: PromptText,
    unfinished: bool,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A detokenizer of an answer that may call functions: the marks of calls are text, special or not.
    #[must_use]
    pub fn with_marks() -> Self {
        Self { shows_marks: true, ..Self::default() }
    }

    /// Takes the next token; returns the text that is whole now, which may be none.
    ///
    /// # Errors
    /// [`InferError::MalformedTokenizer`] when the tokenizer's decoder fails.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, InferError> {
        if tokenizer.is_special(token) {
            return match tokenizer.marks.get(&token).filter(|_| self.shows_marks) {
                Some(mark) => Ok(self.finish(tokenizer)? + mark),
                None => Ok(String::new()), // As if it were not there: it would hide what stands before the window.
            };
        }
        self.window.push(token);
        let mut text = tokenizer.decode(&self.window)?;
        if !text.starts_with(self.said.as_str()) {
            // A byte token that breaks a run of bytes already said: it begins anew.
            self.window = vec![token];
            self.said = PromptText::default();
            text = tokenizer.decode(&self.window)?;
        }
        let whole = whole_chars(&text);
        let new = text.get(self.said.as_str().len()..whole.len()).unwrap_or_default().to_owned();
        if !new.is_empty() {
            self.said = whole.into();
        }
        self.unfinished = self.said.as_str().len() < text.len();
        self.slide(tokenizer, &text)?;
        Ok(new)
    }

    /// Whether the end of the text is an unfinished character that waits for its next token.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// Ends the text; returns its unfinished end, as U+FFFD.
    ///
    /// # Errors
    /// [`InferError::MalformedTokenizer`] when the tokenizer's decoder fails.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, InferError> {
        let text = tokenizer.decode(&self.window)?;
        let rest = text.strip_prefix(self.said.as_str()).unwrap_or_default().to_owned();
        *self = Self { shows_marks: self.shows_marks, ..Self::default() };
        Ok(rest)
    }

    /// Forgets the older half of a full window.
    ///
    /// The rest must say the same as before, so it may not begin inside of a character: one of four neighbouring places
    /// does not. Where all do (bytes that are no UTF-8) any place will do, for a decoder of bytes finds its feet within
    /// four of them, long before the end of what is kept.
    fn slide(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<(), InferError> {
        if self.window.len() < WINDOW_MAX {
            return Ok(());
        }
        let newest = self.window.len() - WINDOW_KEPT;
        for start in (newest - CHAR_BYTES_MAX + 1..=newest).rev() {
            let kept = tokenizer.decode(&self.window[start..])?;
            if text.ends_with(&kept) || start + CHAR_BYTES_MAX == newest + 1 {
                self.window.drain(..start);
                self.said = whole_chars(&kept).into();
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Detokenizer {
    /// Sizes alone: tokens are words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { window, unfinished, .. } = self;
        f.debug_struct("Detokenizer")
            .field("window", &window.len())
            .field("unfinished", unfinished)
            .finish_non_exhaustive()
    }
}

/// `text` without the U+FFFD at its end that may become a character with the next token: at most the three bytes that a
/// character can lack.
fn whole_chars(text: &str) -> &str {
    (1..CHAR_BYTES_MAX).fold(text, |text, _| text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text))
}

/// The source of the chat template.
fn template_source(dir: &Path, config: &Value) -> Result<Option<String>, InferError> {
    if let Some(source) = folder::read(dir, TEMPLATE, TEMPLATE_BYTES_MAX)? {
        let no_text = |_| InferError::MalformedTokenizer { problem: format!("{TEMPLATE} is no UTF-8") };
        return String::from_utf8(source).map(Some).map_err(no_text);
    }
    if let Some(source) = default_template(config) {
        return Ok(Some(source));
    }
    let legacy = folder::read_json(dir, TEMPLATE_JSON, TEMPLATE_BYTES_MAX)?.unwrap_or_default();
    Ok(default_template(&legacy))
}

/// `chat_template`: a text, or a list of `{name, template}` with one named `default`.
fn default_template(config: &Value) -> Option<String> {
    let source = match config.get("chat_template")? {
        Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?.get("template")?,
        source => source,
    };
    source.as_str().map(str::to_owned)
}

/// The special tokens that a template can name: each `…_token` of `tokenizer_config.json`, as a text or as an object
/// with its text in `content`.
fn special_tokens(config: &Value) -> SpecialTokens {
    let text = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
    let entries = config.as_object().into_iter().flatten();
    let mut others: BTreeMap<String, String> = entries
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .collect();
    SpecialTokens { bos: others.remove("bos_token"), eos: others.remove("eos_token"), others }
}

/// Whether a decoder joins bytes that are spelled as letters.
fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// The byte that GPT-2's `bytes_to_unicode` spells as this letter: printable ones as themselves, the 68 others in
/// order from U+0100.
fn byte_of_letter(letter: char) -> Option<u8> {
    match u32::from(letter) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The byte of a piece such as `<0xE2>`.
fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
/// The largest known (262,144 tokens) has 33 MB.
const TOKENIZER_BYTES_MAX: Bytes = Bytes::from_mib(256);
/// The largest known lists each of a thousand reserved tokens, in 1.2 MB.
const CONFIG_BYTES_MAX: Bytes = Bytes::from_mib(16);
/// As JSON a template is a little longer than itself; [`ChatTemplate::new`] has the limit of its own.
const TEMPLATE_BYTES_MAX: Bytes = Bytes::from_mib(1);
/// Tokens at the end of a prompt that hold an open tag and the white space behind it, one byte a token at worst.
const START_TOKENS: usize = 16;
/// Bytes of the longest character.
const CHAR_BYTES_MAX: usize = 4;
/// Tokens that stay in the window: at least as many bytes, so that the last three characters are surely whole.
const WINDOW_KEPT: usize = 16;
/// Tokens at which the window is cut to [`WINDOW_KEPT`].
const WINDOW_MAX: usize = 32;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use ram_core::chat::Role;
    use serde_json::json;

    /// A template in the manner of ChatML.
    pub(crate) const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\
        {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

    /// The letter that spells a byte.
    fn letter(byte: u8) -> char {
        ('!'..='\u{143}').find(|&letter| byte_of_letter(letter) == Some(byte)).unwrap()
    }

    fn added(id: usize, content: &str, special: bool) -> Value {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    }

    /// A byte-level tokenizer: token n is byte n, then come `more`, then the control tokens of [`TEMPLATE`].
    pub(crate) fn byte_level_json(more: &[Vec<u8>]) -> Value {
        let mut vocab = serde_json::Map::new();
        for (id, bytes) in (0..=255).map(|byte| vec![byte]).chain(more.iter().cloned()).enumerate() {
            vocab.entry(bytes.into_iter().map(letter).collect::<String>()).or_insert(id.into());
        }
        let first = 256 + more.len();
        let control = ["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"];
        let mut tokens: Vec<Value> =
            control.iter().enumerate().map(|(i, text)| added(first + i, text, true)).collect();
        tokens.push(added(first + control.len(), "<think>", false));
        json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
            "stride": 0}, "padding": null, "added_tokens": tokens, "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}
        })
    }

    /// The contents of `tokenizer_config.json` to go with it.
    pub(crate) fn config_json() -> Value {
        json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": "<|end|>", "add_bos_token": true})
    }

    /// The tokenizer of [`byte_level_json`] and [`TEMPLATE`].
    pub(crate) fn byte_level(more: &[Vec<u8>]) -> Tokenizer {
        let vocabulary = byte_level_json(more).to_string();
        Tokenizer::parse(vocabulary.as_bytes(), &config_json(), Some(TEMPLATE)).unwrap()
    }

    /// A tokenizer as Llama 2 and Mistral have it: pieces with `▁`, all bytes, and `▁` before the first word.
    fn sentence_pieces() -> Tokenizer {
        let pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁ab", "ab", "é", "▁▁"];
        let mut vocab = serde_json::Map::new();
        let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
        for (id, piece) in pieces.into_iter().map(str::to_owned).chain(bytes).enumerate() {
            vocab.insert(piece, id.into());
        }
        let vocabulary = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["a", "b"], ["▁", "ab"], ["▁", "a"]]}
        });
        Tokenizer::parse(vocabulary.to_string().as_bytes(), &config_json(), None).unwrap()
    }

    fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new();
        let mut pieces: Vec<String> =
            tokens.iter().map(|&token| detokenizer.push(tokenizer, token).unwrap()).collect();
        assert!(detokenizer.window.len() <= WINDOW_MAX);
        pieces.push(detokenizer.finish(tokenizer).unwrap());
        pieces
    }

    fn ask(words: &str) -> [ChatMessage; 1] {
        [ChatMessage::new(Role::User, words)]
    }

    fn chat(tokenizer: &Tokenizer, words: &str) -> Vec<u32> {
        tokenizer.encode_chat(&ask(words), &TemplateOptions::default()).unwrap()
    }

    #[test]
    fn a_conversation_is_encoded_as_its_template_writes_it() {
        let tokenizer = byte_level(&[]);
        let [s, end, user, assistant] = [256, 257, 258, 259];
        let expected: Vec<u32> =
            [&[s, user][..], &"Hi, é!".bytes().map(u32::from).collect::<Vec<_>>(), &[end, assistant]]
                .concat();
        assert_eq!(chat(&tokenizer, "Hi, é!"), expected, "and is not cut by the file's own truncation");
        assert_eq!(tokenizer.end_token(), Some(end));
        assert!(tokenizer.has_template());
    }

    #[test]
    fn a_reasoning_tag_stays_a_token() {
        assert!(chat(&byte_level(&[]), "<think>").contains(&261));
    }

    #[test]
    fn a_plain_text_gets_the_tokenizers_own_special_tokens() {
        let tokenizer = sentence_pieces();
        assert_eq!(tokenizer.encode_text("ab").unwrap(), [1, 7]);
        assert_eq!(
            tokenizer.encode_text("a</s>").unwrap(),
            [1, 6, 2],
            "who writes the prompt writes its tokens"
        );
        let no_template = tokenizer.encode_chat(&ask("a"), &TemplateOptions::default());
        assert_eq!(no_template, Err(InferError::NoTemplate));
    }

    #[test]
    fn a_space_at_the_start_of_a_piece_is_kept_inside_a_text() {
        let tokenizer = sentence_pieces();
        let tokens = [6, 8, 6, 1, 7, 3, 6];
        assert_eq!(streamed(&tokenizer, &tokens), ["a", "ab", " a", "", " ab", " ", " a", ""]);
        assert_eq!(streamed(&tokenizer, &tokens).concat(), tokenizer.decode(&tokens).unwrap());
    }

    #[test]
    fn the_marks_of_calls_are_text_where_functions_may_be_called() {
        let mut vocabulary = byte_level_json(&[]);
        vocabulary["added_tokens"].as_array_mut().unwrap().push(added(262, "[TOOL_CALLS]", true));
        let vocabulary = vocabulary.to_string();
        let tokens: Vec<u32> =
            b"a ".iter().map(|byte| u32::from(*byte)).chain([0xc3, 262, 257, 91]).collect();
        let text = |template: &str, mut detokenizer: Detokenizer| {
            let tokenizer = Tokenizer::parse(vocabulary.as_bytes(), &config_json(), Some(template)).unwrap();
            let mut text: String =
                tokens.iter().map(|token| detokenizer.push(&tokenizer, *token).unwrap()).collect();
            text += &detokenizer.finish(&tokenizer).unwrap();
            text
        };
        let knows = "{{ tools }}[TOOL_CALLS]";
        assert_eq!(text(knows, Detokenizer::with_marks()), "a \u{fffd}[TOOL_CALLS][");
        assert_eq!(text(knows, Detokenizer::new()), "a \u{fffd}[");
        assert_eq!(text("[TOOL_CALLS]", Detokenizer::with_marks()), "a \u{fffd}[");
    }

    #[test]
    fn a_character_of_byte_tokens_comes_whole() {
        let tokenizer = sentence_pieces();
        let byte = |byte: u8| 11 + u32::from(byte);
        let tokens: Vec<u32> = "中é😀".bytes().map(byte).chain([6]).collect();
        let pieces = ["", "", "中", "", "é", "", "", "", "😀", " a", ""];
        assert_eq!(streamed(&tokenizer, &tokens), pieces);
        assert_eq!(streamed(&tokenizer, &[byte(0xe4), 6, byte(0xff)]), ["", "\u{fffd} a", "", "\u{fffd}"]);
    }

    #[test]
    fn long_runs_of_byte_tokens_stay_whole_and_bounded() {
        let tokenizer = sentence_pieces();
        let words = "မြန်မာ😀é".repeat(20) + " ab";
        let tokens = tokenizer.encode_text(&words).unwrap();
        assert_eq!(streamed(&tokenizer, &tokens).concat(), words);
    }

    #[test]
    fn a_token_has_its_very_bytes() {
        let tokenizer = byte_level(&[]);
        for byte in 0..=255_u8 {
            assert_eq!(tokenizer.token_bytes(u32::from(byte)), [byte]);
        }
        assert_eq!(tokenizer.token_bytes(257), b"<|end|>");
        assert_eq!(tokenizer.token_bytes(9999), b"");
        let tokenizer = sentence_pieces();
        assert_eq!(tokenizer.token_bytes(7), b" ab");
        assert_eq!(tokenizer.token_bytes(11 + 0xe4), [0xe4]);
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused() {
        for vocabulary in [
            "",
            "[]",
            "{}",
            "{\"model\": 1}",
            "\u{0}",
            "{\"version\":\"1.0\",\"decoder\":{\"type\":\"x\"}}",
            &byte_level_json(&[]).to_string()[..500],
        ] {
            let refused = Tokenizer::parse(vocabulary.as_bytes(), &Value::Null, None);
            assert!(
                matches!(refused, Err(InferError::MalformedTokenizer { .. })),
                "{vocabulary}: {refused:?}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Tokenizer::load(dir.path()), Err(InferError::MissingFile { .. })));
    }

    #[test]
    fn the_template_is_found_in_each_of_its_places() {
        let check = |files: &[(&str, Value)], expected: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("tokenizer.json"), byte_level_json(&[]).to_string()).unwrap();
            for (name, value) in files {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            let tokenizer = Tokenizer::load(dir.path()).unwrap();
            let tokens = tokenizer.encode_chat(&[], &TemplateOptions::default());
            let text = tokens.ok().map(|tokens| tokenizer.decode(&tokens).unwrap());
            assert_eq!(text.as_deref(), expected, "{files:?}");
        };
        let named = json!([{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]);
        check(&[], None);
        check(&[(CONFIG, json!({"chat_template": "C"}))], Some("C"));
        check(&[(CONFIG, json!({"chat_template": named}))], Some("D"));
        check(&[(TEMPLATE_JSON, json!({"chat_template": "J"}))], Some("J"));
        check(&[(super::TEMPLATE, json!("F")), (CONFIG, json!({"chat_template": "C"}))], Some("F"));
    }

    #[test]
    fn a_template_that_does_not_parse_is_refused() {
        let vocabulary = byte_level_json(&[]).to_string();
        let refused = Tokenizer::parse(vocabulary.as_bytes(), &Value::Null, Some("{% if %}"));
        assert!(matches!(refused, Err(InferError::Template(_))), "{refused:?}");
    }

    proptest! {
        #[test]
        fn streamed_text_is_the_text_of_all_tokens(
            words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6), 1..40),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..150),
        ) {
            let tokenizer = byte_level(&words);
            let tokens: Vec<u32> = picks.iter().map(|pick| u32::try_from(pick.index(256 + words.len() + 6)).unwrap()).collect();
            let pieces = streamed(&tokenizer, &tokens);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&tokens).unwrap());
        }

        #[test]
        fn streamed_text_is_exact_where_no_token_ends_with_a_character(
            picks in prop::collection::vec(0..8_usize, 0..150),
        ) {
            // Pieces of 😀 (f0 9f 98 80) and 中 (e4 b8 ad) that overlap, and bytes that are nothing.
            let words: [&[u8]; 8] = [b"\xf0\x9f", b"\x98", b"\x80\xe4", b"\xb8", b"\xad\xf0\x9f\x98", b"\x80\xf0", b"\x9f\x98", b"\xff"];
            let tokenizer = byte_level(&words.map(<[u8]>::to_vec));
            let tokens: Vec<u32> = picks.iter().map(|&pick| tokenizer.inner.token_to_id(
                &words[pick].iter().copied().map(letter).collect::<String>()).unwrap()).collect();
            prop_assert_eq!(streamed(&tokenizer, &tokens).concat(), tokenizer.decode(&tokens).unwrap());
        }

        #[test]
        fn whole_characters_come_as_soon_as_they_are_whole(words in "[a-zé中😀 ]{0,60}") {
            let tokenizer = byte_level(&[]);
            let mut detokenizer = Detokenizer::new();
            let mut text = String::new();
            for (token, end) in words.bytes().zip(1..) {
                text += &detokenizer.push(&tokenizer, u32::from(token)).unwrap();
                let whole = (0..=end).rev().find_map(|end| words.get(..end)).unwrap();
                prop_assert_eq!(&text, whole);
                prop_assert_eq!(detokenizer.is_unfinished(), whole.len() < end);
            }
        }

        #[test]
        fn an_ordinary_conversation_is_untouched(words in "[ -~é中]{0,40}") {
            let tokenizer = byte_level(&[]);
            prop_assume!(!tokenizer.guard.spells(&words));
            let rendered = format!("<s><|user|>{words}<|end|><|assistant|>");
            prop_assert_eq!(chat(&tokenizer, &words), tokenizer.encode(&rendered, false).unwrap());
        }
    }
}
