//! How the engine serves requests: what it costs beside the model alone, and what it saves.
//!
//! ```text
//! cargo run --release -p ram-infer --example serving -- MODEL_DIR --rounds 5 --threads 2 --json
//! cargo run --release -p ram-infer --example serving -- --shape llama-3.2-1b --only overhead,prefix
//! ```
//!
//! | `--only` | what is told | first | second |
//! |---|---|---|---|
//! | `overhead` | time a token, one request | the model's passes alone, nothing picked | a greedy request |
//! | `batch` | tokens a second, all together | one request | `--batch` requests at once |
//! | `prefix` | time to the first token | a prompt of `--prefix` words and some | another that begins with the same |
//! | `repeating` | tokens a second, one request | one word over and over, without speculation | with it |
//! | `quoting` | tokens a second, one request | quotations from the prompt, without speculation | with it |
//! | `seeming` | tokens a second, one request | few words at random, without speculation | with it |
//! | `fresh` | tokens a second, one request | all words at random, without speculation | with it |
//!
//! The two sides of a figure take turns in one process, once a round. A ratio is the second over the first within a
//! round; the median of the rounds is told, with the least and the most. Answers have `--tg` tokens, and are timed from
//! their first token on. `overhead` and `batch` go without speculation; with it and without, answers must be the same.
//!
//! `--shape llama-3.2-1b` makes a model of random weights as `bench` does. What such a model says seldom repeats, so a
//! bias chooses the words it may say: *repeating* is the best case of speculation; *seeming* looks like a repetition
//! and is none, which is where guessing may cost. *quoting* is held to a text by a grammar: by turns 8 new words and 24
//! that stand in the prompt. *period* tells in how many words an answer went in a circle.

#![expect(clippy::print_stdout, reason = "an example speaks to the terminal")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod figure;
#[path = "../tests/random_model/mod.rs"]
mod random_model;
mod requests;
mod runner;

use std::error::Error;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ram_core::format::{ResponseFormat, Syntax};
use ram_core::job::{GenerationParams, Sampling};
use ram_core::units::TokenCount;
use ram_infer::batch::BLOCK_TOKENS;
use ram_infer::config::ModelConfig;
use ram_infer::engine::{Engine, EngineConfig};
use ram_infer::models::Numerics;
use ram_infer::tokenize::Tokenizer;

use self::figure::Figure;
use self::random_model::Shape;
use self::requests::{ask, ask_with};
use self::runner::Sequences;

/// What to measure.
struct Options {
    /// A model's folder; or else one of `shape` is made.
    model: Option<PathBuf>,
    shape: Shape,
    mode: Numerics,
    threads: usize,
    rounds: usize,
    decode: usize,
    batch: NonZeroU16,
    prefix: usize,
    /// Names of figures; all if there are none.
    only: Vec<String>,
    json: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    let figures = match &options.model {
        Some(dir) => measure(dir, &options)?,
        None => {
            let dir = tempfile::tempdir()?;
            options.shape.write(dir.path())?;
            options.shape.write_tokenizer(dir.path())?;
            measure(dir.path(), &options)?
        }
    };
    if options.json {
        println!("{}", options.json(&figures));
    }
    Ok(())
}

fn measure(dir: &Path, options: &Options) -> Result<Vec<Figure>, Box<dyn Error>> {
    let stand = Stand::new(dir, options)?;
    let mut figures = Vec::new();
    let mut tell = |figure: Figure| {
        if !options.json {
            figure.print();
        }
        figures.push(figure);
    };
    let plain = stand.engine(false)?;
    if options.wants("overhead") {
        tell(stand.overhead(&plain)?);
    }
    if options.wants("batch") {
        tell(stand.batch(&plain)?);
    }
    let clever = stand.engine(true)?;
    if options.wants("prefix") {
        tell(stand.prefix(&clever)?);
    }
    if options.wants("quoting") {
        let (text, params) = stand.quoting()?;
        tell(stand.speculation("quoting", [&plain, &clever], text, &params)?);
    }
    for (name, temperature, few) in [("repeating", 0.0, 1), ("seeming", 1.0, FEW), ("fresh", 1.0, 0)] {
        if options.wants(name) {
            let params = stand.params(stand.sampling(temperature, few));
            tell(stand.speculation(name, [&plain, &clever], stand.text(0, PROMPT), &params)?);
        }
    }
    Ok(figures)
}

/// A model, and what it can be asked.
struct Stand<'a> {
    dir: &'a Path,
    options: &'a Options,
    tokenizer: Tokenizer,
    /// Tokens that are a space and small letters: a text of so many words has as many tokens.
    words: Vec<(u32, String)>,
    /// Tokens that would end an answer early.
    ends: Vec<u32>,
}

impl<'a> Stand<'a> {
    fn new(dir: &'a Path, options: &'a Options) -> Result<Self, Box<dyn Error>> {
        let (tokenizer, config) = (Tokenizer::load(dir)?, ModelConfig::read(dir)?);
        let word = |token: u32| {
            let text = String::from_utf8(tokenizer.token_bytes(token)).ok()?;
            let letters = text.strip_prefix(' ')?;
            let is_word = letters.len() > 1 && letters.bytes().all(|byte| byte.is_ascii_lowercase());
            is_word.then_some((token, text))
        };
        let words: Vec<_> = (0..).take(config.vocab_size).filter_map(word).collect();
        if words.len() < FEW {
            return Err("the vocabulary has too few words".into());
        }
        let ends = config.eos_token_ids.iter().copied().chain(tokenizer.end_token()).collect();
        Ok(Self { dir, options, tokenizer, words, ends })
    }

    fn engine(&self, speculation: bool) -> Result<Engine, Box<dyn Error>> {
        let config = EngineConfig { slots: self.options.batch, speculation, ..EngineConfig::default() };
        let options = runner::load_options(self.options.mode, self.options.threads);
        let engine = Engine::load_with(self.dir, &options, config)?;
        // The first request makes room, and is not counted.
        ask(&engine, &[self.text(0, PROMPT)], 2, &self.sampling(0.0, 0))?;
        Ok(engine)
    }

    /// Of the first few words alone; or, with none, of any but those that end an answer.
    fn sampling(&self, temperature: f32, few: usize) -> Sampling {
        let never = self.ends.iter().map(|token| (*token, -100.0));
        let only = self.words.iter().take(few).map(|(token, _)| (*token, 100.0));
        Sampling { temperature, logit_bias: never.chain(only).collect(), ..Sampling::default() }
    }

    /// So many words. Each number is another beginning.
    fn text(&self, number: usize, words: usize) -> String {
        let first = number * 7919 % self.words.len();
        self.words.iter().cycle().skip(first).step_by(7).take(words).map(|(_, word)| word.as_str()).collect()
    }

    /// What the engine adds to the model's passes.
    fn overhead(&self, engine: &Engine) -> Result<Figure, Box<dyn Error>> {
        let Options { mode, threads, decode, .. } = *self.options;
        let model = runner::load(self.dir, mode, threads, None)?;
        let (text, sampling) = ([self.text(0, PROMPT)], self.sampling(0.0, 0));
        let prompt = self.tokenizer.encode_text(&text[0])?;
        // The last token of an answer is picked and not computed.
        let passes = decode - 1;
        let mut figure = self.figure("overhead", "ms/token", |_| {
            let mut sequences = Sequences::new(&model, 1, prompt.len() + passes);
            sequences.extend(0, &prompt)?;
            let start = Instant::now();
            for token in prompt.iter().cycle().take(passes) {
                sequences.step(&[*token])?;
            }
            let (alone, served) = (start.elapsed(), ask(engine, &text, decode, &sampling)?.rest);
            Ok([alone, served].map(|time| 1e3 * time.as_secs_f64() / passes as f64))
        })?;
        figure.bar = Some(1.05);
        figure.more.push(("percent", 100.0 * (figure.ratio() - 1.0)));
        Ok(figure)
    }

    /// What requests share of a pass.
    fn batch(&self, engine: &Engine) -> Result<Figure, Box<dyn Error>> {
        let texts: Vec<_> =
            (0..self.options.batch.get().into()).map(|number| self.text(number, PROMPT)).collect();
        let (decode, sampling) = (self.options.decode, self.sampling(0.0, 0));
        self.figure("batch", "tokens/s", |_| {
            let alone = ask(engine, &texts[..1], decode, &sampling)?;
            let together = ask(engine, &texts, decode, &sampling)?;
            Ok([alone.tokens_per_s(), together.tokens_per_s()])
        })
    }

    /// What is saved where somebody began with the same words. A new beginning each round, so that cold is cold.
    fn prefix(&self, engine: &Engine) -> Result<Figure, Box<dyn Error>> {
        let (prefix, sampling) = (self.options.prefix, self.sampling(0.0, 0));
        let mut figure = self.figure("prefix", "ms", |round| {
            let beginning = self.text(1 + round, prefix);
            let with = |own| ask(engine, &[format!("{beginning}{}", self.text(own, OWN))], 1, &sampling);
            let (cold, warm) = (with(0)?, with(1)?);
            if cold.cached > 0 || warm.cached + (BLOCK_TOKENS as u64) <= prefix as u64 {
                return Err(format!("{} and {} tokens were used again", cold.cached, warm.cached).into());
            }
            Ok([cold.first, warm.first].map(|time| 1e3 * time.as_secs_f64()))
        })?;
        figure.bar = Some(0.1);
        Ok(figure)
    }

    /// What guessing saves or costs.
    fn speculation(
        &self,
        name: &'static str,
        [plain, clever]: [&Engine; 2],
        text: String,
        params: &GenerationParams,
    ) -> Result<Figure, Box<dyn Error>> {
        let (text, mut tokens_a_pass, mut period) = ([text], Vec::new(), None);
        let mut figure = self.figure(name, "tokens/s", |_| {
            let without = ask_with(plain, &text, params)?;
            let with = ask_with(clever, &text, params)?;
            assert!(without.text == with.text, "speculation changes no answer");
            tokens_a_pass.push(with.tokens_a_pass(1.0 / without.tokens_per_s()));
            period = with.period();
            Ok([without.tokens_per_s(), with.tokens_per_s()])
        })?;
        figure.more.push(("tokens a pass", figure::median(tokens_a_pass.into_iter())));
        figure.more.extend(period.map(|words| ("period", words as f64)));
        Ok(figure)
    }

    fn params(&self, sampling: Sampling) -> GenerationParams {
        GenerationParams::new(TokenCount::new(self.options.decode as u64), sampling)
    }

    /// A prompt, and an answer that a grammar makes quote from it.
    fn quoting(&self) -> Result<(String, GenerationParams), Box<dyn Error>> {
        // Of one length, so that none is the beginning of another and only one token can come next.
        let mut words = self.words.iter().filter(|(_, word)| word.len() == WORD).step_by(7);
        let source: Vec<_> = words.by_ref().take(SOURCE).collect();
        let mut answer = Vec::new();
        for number in 0..self.options.decode.div_ceil(FRESH + QUOTED) {
            answer.extend(words.by_ref().take(FRESH));
            let first = number * 89 % (SOURCE - QUOTED);
            answer.extend(&source[first..first + QUOTED]);
        }
        if answer.len() < self.options.decode {
            return Err("the vocabulary has too few words of three letters".into());
        }
        let joined =
            |words: &[&(u32, String)]| words.iter().map(|(_, word)| word.as_str()).collect::<String>();
        let mut sampling = self.sampling(0.0, 0);
        sampling.logit_bias.extend(answer.iter().map(|(token, _)| (*token, 100.0)));
        let definition = joined(&answer).into();
        let format = ResponseFormat::Grammar { syntax: Syntax::Regex, definition };
        Ok((joined(&source), GenerationParams { format, ..self.params(sampling) }))
    }

    fn figure(
        &self,
        name: &'static str,
        unit: &'static str,
        round: impl FnMut(usize) -> Result<[f64; 2], Box<dyn Error>>,
    ) -> Result<Figure, Box<dyn Error>> {
        let rounds = (0..self.options.rounds).map(round).collect::<Result<_, _>>()?;
        Ok(Figure { name, unit, rounds, bar: None, more: Vec::new() })
    }
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            model: None,
            shape: Shape::LLAMA_3_2_1B,
            mode: Numerics::best(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: 3,
            decode: 128,
            batch: const { NonZeroU16::new(8).expect("is not zero") },
            prefix: 2048,
            only: Vec::new(),
            json: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--model" => options.model = Some(value()?.into()),
                "--shape" => match value()?.as_str() {
                    "demo" => options.model = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/demo").into()),
                    shape => options.shape = Shape::named(shape)?,
                },
                "--mode" => options.mode = runner::numerics(&value()?)?,
                "--threads" => options.threads = value()?.parse::<usize>()?.max(1),
                "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
                "--tg" | "--decode" => options.decode = value()?.parse::<usize>()?.max(2),
                "--batch" => options.batch = value()?.parse()?,
                "--prefix" => options.prefix = value()?.parse::<usize>()?.max(BLOCK_TOKENS),
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--json" => options.json = true,
                _ if word.starts_with('-') => {
                    return Err(format!("{word} is unknown: see the head of this example").into());
                }
                _ => options.model = Some(word.into()),
            }
        }
        Ok(options)
    }

    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == figure)
    }

    fn json(&self, figures: &[Figure]) -> serde_json::Value {
        serde_json::json!({
            "mode": runner::name(self.mode), "threads": self.threads, "decode": self.decode, "batch": self.batch,
            "prefix": self.prefix, "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
        })
    }
}

/// Words of a short prompt.
const PROMPT: usize = 16;

/// Words of a prompt's own behind a shared beginning.
const OWN: usize = 8;

/// Bytes of a word in a quotation, the space before it included.
const WORD: usize = 4;

/// Words of what is quoted from, of a quotation, and of what stands between two.
const SOURCE: usize = 256;
const QUOTED: usize = 24;
const FRESH: usize = 8;

/// So few words that the same ones come after one another again and again, by chance alone.
const FEW: usize = 4;
