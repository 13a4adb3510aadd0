//! The whole engine over real files: a folder is loaded, and words come out.
//!
//! The tiny models of `fixtures` have random weights and no tokenizer; here they get one of 256 tokens: five special
//! ones, then each byte from 5 on as itself.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail the test")]

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::{Path, PathBuf};

use ram_core::chat::{ChatMessage, Role};
use ram_core::job::{Failure, FinishReason, GenerationParams, Outcome, Sampling, TokenLogprob, Usage};
use ram_core::units::{Bytes, TokenCount};
use ram_infer::config::Architecture;
use ram_infer::device::Device;
use ram_infer::engine::{Engine, EngineConfig, Event, Generation, Prompt, Request};
use ram_infer::error::InferError;
use serde_json::json;
use tempfile::TempDir;

/// The stored models, one of each family.
const FAMILIES: [(&str, Architecture); 4] = [
    ("llama-4bit-g64", Architecture::Llama),
    ("mistral-4bit-g64", Architecture::Mistral),
    ("qwen2-4bit-g32", Architecture::Qwen2),
    ("qwen3-4bit-g64-mixed", Architecture::Qwen3),
];
/// Tokens of the template's frame around one message.
const FRAME: usize = 4;

/// A fixture with a tokenizer, in a folder of its own.
fn tiny(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let template =
        "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>";
    let config = json!({"eos_token": "<|end|>", "chat_template": template});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn tokenizer() -> serde_json::Value {
    let special = ["<s>", "<|user|>", "<|end|>", "<|assistant|>", "<|system|>"];
    let added: Vec<_> = (0..)
        .zip(special)
        .map(|(id, text): (u32, _)| {
            json!({"id": id, "content": text, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    // GPT-2's letters for bytes: printable ones as themselves, the others in order from U+0100.
    let mut others = 0x100_u32..;
    let letters = (0..=255_u8).map(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => others.next().and_then(char::from_u32).unwrap(),
    });
    let vocab: serde_json::Map<_, _> = letters
        .enumerate()
        .map(|(id, letter)| {
            (special.get(id).map_or_else(|| letter.to_string(), |text| (*text).to_owned()), id.into())
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    })
}

fn load(dir: &Path, slots: u16, prefill_chunk: usize) -> Engine {
    let config = EngineConfig {
        slots: NonZeroU16::new(slots).unwrap(),
        prefill_chunk: NonZeroUsize::new(prefill_chunk).unwrap(),
        ..EngineConfig::default()
    };
    Engine::load(dir, &Device::Cpu, config).unwrap()
}

fn request(words: &str, sampling: Sampling) -> Request {
    let params = GenerationParams::new(TokenCount::new(40), sampling);
    Request { prompt: Prompt::Chat(vec![ChatMessage::new(Role::User, words)].into()), params }
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

/// An answer, whole.
#[derive(Debug, PartialEq)]
struct Answer {
    text: String,
    tokens: TokenCount,
    logprobs: Vec<TokenLogprob>,
    outcome: Outcome,
}

fn read(generation: Generation) -> Answer {
    let (mut text, mut tokens, mut logprobs) = (String::new(), TokenCount::ZERO, Vec::new());
    for event in generation.into_blocking() {
        match event {
            Event::Started { .. } => assert!(text.is_empty()),
            Event::Delta { text: more, tokens: count, logprobs: further } => {
                text += more.as_str();
                tokens += count;
                logprobs.extend(further);
            }
            Event::End { outcome } => return Answer { text, tokens, logprobs, outcome },
        }
    }
    panic!("a generation ends with an end")
}

fn ask(engine: &Engine, request: Request) -> Answer {
    read(engine.submit(request).unwrap())
}

#[test]
fn the_same_seed_gives_the_same_text_alone_and_beside_four_strangers() {
    for (name, architecture) in FAMILIES {
        let dir = tiny(name);
        let engine = load(dir.path(), 5, 16);
        assert_eq!(engine.info().architecture, architecture);
        let sampling = Sampling { seed: 7, ..Sampling::default() };
        let ours = || request("How are you, and how long is this prompt?", sampling.clone());
        let alone = ask(&engine, ours());
        let strangers: Vec<Generation> = (0..4_usize)
            .map(|n| {
                let words = "a stranger's words ".repeat(1 + 3 * n);
                engine.submit(request(&words, Sampling { seed: n as u64, ..Sampling::default() })).unwrap()
            })
            .collect();
        let beside = ask(&engine, ours());
        assert_eq!(beside, alone, "{name}");
        assert!(alone.tokens > TokenCount::ZERO);
        strangers.into_iter().for_each(|stranger| drop(read(stranger)));
        let other = ask(&engine, request("How are you?", Sampling { seed: 8, ..Sampling::default() }));
        assert_ne!(other.text, alone.text, "{name}");
    }
}

#[test]
fn chunks_of_any_size_read_the_same_prompt() {
    let dir = tiny("llama-4bit-g64");
    let words = "a prompt of several chunks, or of one";
    let whole = ask(&load(dir.path(), 1, 512), request(words, greedy()));
    for chunk in [1, 5, 16] {
        assert_eq!(ask(&load(dir.path(), 1, chunk), request(words, greedy())), whole, "chunks of {chunk}");
    }
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let dir = tiny("llama-4bit-g64");
    let engine = load(dir.path(), 1, 16);
    let mut asked = request("Hello", greedy());
    // All letters alike, so that the answer is text and its stop string spans tokens.
    asked.params.sampling.logit_bias = (97..123).map(|letter| (letter, 100.0)).collect::<BTreeMap<_, _>>();
    asked.params.sampling.presence_penalty = 2.0;
    let whole = ask(&engine, asked.clone());
    assert_eq!(whole.text.len(), 40);
    let stop = &whole.text[10..13];
    asked.params.stop = vec!["nowhere".into(), stop.into()];
    let cut = ask(&engine, asked);
    let at = whole.text.find(stop).unwrap();
    assert_eq!(cut.text, whole.text[..at]);
    let usage = Usage {
        prompt: TokenCount::new((5 + FRAME) as u64),
        completion: TokenCount::new(at as u64 + 3),
        reasoning: TokenCount::ZERO,
    };
    assert_eq!(cut.outcome, Outcome::Done { finish: FinishReason::Stop, usage });
    assert_eq!(cut.tokens, usage.completion);
}

#[test]
fn a_token_that_ends_the_turn_ends_the_answer() {
    let dir = tiny("qwen2-4bit-g32");
    let engine = load(dir.path(), 1, 16);
    let mut asked = request("Hello", greedy());
    asked.params.sampling.logit_bias = BTreeMap::from([(2, 100.0)]); // <|end|>
    let answer = ask(&engine, asked);
    assert_eq!(answer.text, "");
    assert!(matches!(answer.outcome, Outcome::Done { finish: FinishReason::Stop, .. }));
}

#[test]
fn log_probabilities_come_with_the_text() {
    let dir = tiny("qwen3-4bit-g64-mixed");
    let engine = load(dir.path(), 1, 16);
    let answer = ask(&engine, request("Hello", Sampling { top_logprobs: Some(3), ..greedy() }));
    assert_eq!(answer.logprobs.len() as u64, answer.tokens.get());
    for logprob in &answer.logprobs {
        assert_eq!(logprob.top.len(), 3);
        assert_eq!((&logprob.top[0].bytes, logprob.top[0].logprob), (&logprob.bytes, logprob.logprob));
        assert!(logprob.top.is_sorted_by(|a, b| a.logprob >= b.logprob) && logprob.logprob <= 0.0);
    }
    let bytes: Vec<u8> = answer.logprobs.iter().flat_map(|logprob| logprob.bytes.clone()).collect();
    let special = ["<s>", "<|user|>", "<|assistant|>", "<|system|>"];
    if !special.iter().any(|text| String::from_utf8_lossy(&bytes).contains(text)) {
        assert_eq!(String::from_utf8_lossy(&bytes), answer.text);
    }
}

#[test]
fn the_context_bounds_prompt_and_answer() {
    let dir = tiny("mistral-4bit-g64");
    let config = EngineConfig { context_max: Some(TokenCount::new(20)), ..EngineConfig::default() };
    let engine = Engine::load(dir.path(), &Device::Cpu, config).unwrap();
    let limit = TokenCount::new(20);
    assert_eq!(engine.info().context, limit);
    let failure = Failure::ContextLengthExceeded { prompt: TokenCount::new(20), limit };
    let too_long = ask(&engine, request(&"a".repeat(20 - FRAME), greedy()));
    assert_eq!(too_long.outcome, Outcome::Failed { failure });
    let mut asked = request(&"a".repeat(15 - FRAME), greedy());
    asked.params.sampling.logit_bias = BTreeMap::from([(97, 100.0)]);
    let cut = ask(&engine, asked);
    assert_eq!(cut.text, "aaaaa");
    assert!(matches!(cut.outcome, Outcome::Done { finish: FinishReason::Length, .. }));
}

#[test]
fn memory_for_keys_and_values_is_bounded() {
    let dir = tiny("llama-4bit-g64");
    // 2 layers of keys and values, 2 heads of 16 numbers each, 2 bytes: 256 bytes a token, in blocks of 32.
    let config = EngineConfig { kv_bytes_max: Some(Bytes::new(256 * 64 + 99)), ..EngineConfig::default() };
    let engine = Engine::load(dir.path(), &Device::Cpu, config).unwrap();
    let mut fits = request("five!", greedy());
    fits.params.max_tokens = TokenCount::new(64 - 5 - FRAME as u64);
    let mut longer = fits.clone();
    longer.params.max_tokens += TokenCount::new(1000);
    let too_large = request(&"a".repeat(64), greedy());
    let (fits, longer) = (ask(&engine, fits), ask(&engine, longer));
    assert!(matches!(fits.outcome, Outcome::Done { .. }));
    assert_eq!((longer.text, longer.outcome), (fits.text, fits.outcome), "it is cut where memory ends");
    assert_eq!(ask(&engine, too_large).outcome, Outcome::Failed { failure: Failure::OutOfMemory });
}

#[test]
fn a_folder_without_a_tokenizer_is_refused() {
    let dir = tiny("llama-4bit-g64");
    std::fs::write(dir.path().join("tokenizer.json"), "not a tokenizer").unwrap();
    let load = || Engine::load(dir.path(), &Device::Cpu, EngineConfig::default());
    assert!(matches!(load(), Err(InferError::MalformedTokenizer { .. })));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(matches!(load(), Err(InferError::MissingFile { file }) if file == "tokenizer.json"));
}

/// The folder of the bundled model.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

#[test]
fn the_bundled_model_knows_the_capital_of_france() {
    let engine = Engine::load(&demo(), &Device::Cpu, EngineConfig::default()).unwrap();
    let answer = ask(&engine, request("What is the capital of France?", greedy()));
    assert!(answer.text.contains("Paris"), "{}", answer.text);
    assert!(matches!(answer.outcome, Outcome::Done { finish: FinishReason::Stop, .. }));
}

#[test]
fn the_bundled_model_answers_the_last_question_of_a_conversation() {
    let engine = Engine::load(&demo(), &Device::Cpu, EngineConfig::default()).unwrap();
    let messages = vec![
        ChatMessage::new(Role::User, "What is the capital of France?"),
        ChatMessage::new(Role::Assistant, "The capital of France is Paris."),
        ChatMessage::new(Role::User, "What is the capital of Italy?"),
    ];
    let answer = ask(&engine, Request { prompt: Prompt::Chat(messages.into()), ..request("", greedy()) });
    assert!(answer.text.contains("Rome"), "{}", answer.text);
}
