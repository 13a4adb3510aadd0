//! A model that says what it is told to: each token has one successor, so that a whole dialogue can be written into its
//! weights. What runs it is the real engine, with the bundled model's tokenizer.
//!
//! ```text
//! h = one-hot(token's state)      the embedding; the one layer adds nothing to it
//! logits = 10 * lm_head h         row `next` of the head is one-hot of the state that it follows
//! ```

#![allow(dead_code, reason = "each test file is a crate of its own and uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// A template as those of the Hermes family are: tools are listed, and a call is JSON between tags.
const TEMPLATE: &str = concat!(
    "{%- if tools %}Call a tool by <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>:\n",
    "{%- for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}",
    "{%- for message in messages %}<|user|>{{ message.content }}",
    "{%- for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}",
    "{%- endfor %}<|end|>{% endfor %}",
    "{%- if messages[-1].role == 'tool' %}<|told|>{% elif tools %}<|asked|>{% else %}<|plain|>{% endif %}",
);
/// What the model says to a result, to a question with tools, and to one without.
const DIALOGUES: [&[&str]; 3] = [
    &["<|told|>", "It is", " sunny."],
    &[
        "<|asked|>",
        "<tool_call>",
        "\n{\"name\": \"get_weather\", ",
        "\"arguments\": {\"city\": \"Paris\"}}\n",
        "</tool_call>",
    ],
    &["<|plain|>", "The capital", " of France is ", "Paris", ", of course."],
];

/// Writes a model that calls `get_weather` for Paris whenever it may.
pub(crate) fn write_weather(dir: &Path) {
    write(dir, TEMPLATE, &DIALOGUES);
}

/// Writes a model that thinks before it answers.
pub(crate) fn write_thinker(dir: &Path) {
    let dialogue =
        ["<|plain|>", "<think>", "It is the capital ", "of France.", "</think>", "\n\n", "Paris", " it is."];
    write(dir, TEMPLATE, &[&dialogue]);
}

/// Writes a model whose answers are long beyond what a network's buffers hold: a few tokens, each a page. With
/// log-probabilities, which spell each byte, one answer is 5 MB on the wire.
pub(crate) fn write_pages(dir: &Path) {
    let page = |number: usize| format!("{}{number:02}", "x".repeat(16 << 10));
    let pages: Vec<String> = (0..48).map(page).collect();
    let dialogue: Vec<&str> = std::iter::once("<|plain|>").chain(pages.iter().map(String::as_str)).collect();
    write(dir, TEMPLATE, &[&dialogue]);
}

/// Vocabulary of the bundled tokenizer, and the id of its token that ends an answer.
const BUNDLED_TOKENS: usize = 1536;
const END: usize = 1;
/// Width of the model: at most so many phrases.
const WIDTH: usize = 64;
/// Rows beyond the phrases, so that the vocabulary is a round number.
const VOCABULARY: usize = 1600;

/// Writes a model's folder. Each dialogue is a prompt's last token and the tokens that follow, each of which may stand
/// in one dialogue alone.
fn write(dir: &Path, template: &str, dialogues: &[&[&str]]) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in ram_infer::demo::FILES {
        fs::write(dir.join(name), bytes).unwrap();
    }
    edit(&dir.join("tokenizer_config.json"), |config| config["chat_template"] = json!(template));
    edit(&dir.join("tokenizer.json"), |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        for (id, phrase) in (BUNDLED_TOKENS..).zip(dialogues.iter().copied().flatten()) {
            added.push(json!({
                "id": id, "content": phrase, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": false,
            }));
        }
    });
    fs::write(dir.join("config.json"), config().to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(&tensors(dialogues))).unwrap();
}

fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "max_position_embeddings": 1024, "hidden_act": "silu",
        "tie_word_embeddings": false, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": END,
    })
}

/// Names, shapes and values of all tensors.
fn tensors(dialogues: &[&[&str]]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut embedding = vec![0.0; VOCABULARY * WIDTH];
    let mut head = vec![0.0; VOCABULARY * WIDTH];
    let mut token = BUNDLED_TOKENS;
    for dialogue in dialogues {
        for place in 0..dialogue.len() {
            let state = token + 1 - BUNDLED_TOKENS; // state 0 is that of all other tokens
            let next = if place + 1 == dialogue.len() { END } else { token + 1 };
            embedding[token * WIDTH + state] = 1.0;
            head[next * WIDTH + state] = 1.0;
            token += 1;
        }
    }
    for other in (0..BUNDLED_TOKENS).chain(token..VOCABULARY) {
        embedding[other * WIDTH] = 1.0;
    }
    let nothing = || vec![0.0; WIDTH * WIDTH];
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, WIDTH], embedding),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, WIDTH], head),
        ("model.norm.weight".to_owned(), vec![WIDTH], vec![10.0; WIDTH]),
    ];
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((layer(norm), vec![WIDTH], vec![1.0; WIDTH]));
    }
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("self_attn.{name}"));
    let mlp = ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.{name}"));
    for projection in attention.iter().chain(&mlp) {
        tensors.push((layer(projection), vec![WIDTH, WIDTH], nothing()));
    }
    tensors
}

/// The bytes of a safetensors file: the head's length, the head in JSON, the values.
fn safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let (mut head, mut values) = (serde_json::Map::new(), Vec::new());
    for (name, shape, floats) in tensors {
        let from = values.len();
        values.extend(floats.iter().flat_map(|float| float.to_le_bytes()));
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, values.len()] });
        head.insert(name.clone(), entry);
    }
    let mut head = Value::Object(head).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    [&(head.len() as u64).to_le_bytes()[..], &head, &values].concat()
}
