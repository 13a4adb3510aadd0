//! What tests of split models share: small models of each family, every way to cut them into runs of layers, a
//! conversation step by step, and what a chain of stages in one process gives for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ram_core::id::JobId;
use ram_core::job::Sampling;
use ram_core::layers::LayerRange;
use ram_core::units::TokenCount;
use ram_infer::config::ModelConfig;
use ram_infer::models::{LoadOptions, Model, Shard};
use ram_pipeline::stage::{Input, Opening, Stage, StageOutput, StageStep};
use ram_proto::frame::{Logprob, Want};
use ram_proto::tensor::{self, Dtype, Shape};
use ram_provider::stage::ModelStage;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// A small model of each family and way to pack.
pub(crate) const FAMILIES: [&str; 8] = [
    "llama-4bit-g64",
    "mistral-4bit-g64",
    "qwen2-4bit-g32",
    "qwen3-4bit-g64-mixed",
    "qwen3-moe-4bit-g64",
    "qwen3-next-4bit-g64",
    "qwen3-5-moe-nvfp4",
    "deepseek-4bit-g32-yarn",
];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ram-infer/tests/fixtures").join(name)
}

/// Models of eight layers, of which those of a fixture are the pattern: a dense one, and one of experts whose every
/// third layer is dense.
pub(crate) fn of_eight_layers() -> [TempDir; 2] {
    [grown("llama-4bit-g64"), grown("qwen3-moe-4bit-g64")]
}

/// A fixture's model with its layers over and over, up to eight. The packed numbers of each are shifted by another
/// count, so that no two layers are the same.
fn grown(name: &str) -> TempDir {
    const LAYERS: usize = 8;
    let (from, dir) = (fixture(name), tempfile::tempdir().unwrap());
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let count = usize::try_from(config["num_hidden_layers"].as_u64().unwrap()).unwrap();
    let again = |layer: usize| (layer..LAYERS).step_by(count);
    let renamed = |name: &str| match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => again(layer.parse().unwrap())
            .map(|layer| (layer, format!("model.layers.{layer}.{rest}")))
            .collect(),
        None => vec![(0, name.to_owned())],
    };
    config["num_hidden_layers"] = LAYERS.into();
    if let Some(dense) = config["mlp_only_layers"].as_array_mut() {
        let layers = dense.iter().map(|layer| usize::try_from(layer.as_u64().unwrap()).unwrap());
        *dense = layers.flat_map(again).map(Into::into).collect();
    }
    for field in ["quantization", "quantization_config"] {
        if let Some(packings) = config[field].as_object_mut() {
            let all = std::mem::take(packings).into_iter();
            *packings = all
                .flat_map(|(name, packing)| {
                    renamed(&name).into_iter().map(move |(_, name)| (name, packing.clone()))
                })
                .collect();
        }
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let file = std::fs::read(from.join("model.safetensors")).unwrap();
    let mut numbers = BTreeMap::new();
    for (name, tensor) in SafeTensors::deserialize(&file).unwrap().tensors() {
        for (layer, name) in renamed(&name) {
            let mut bytes = tensor.data().to_vec();
            if tensor.dtype() == safetensors::Dtype::U32 {
                bytes.rotate_left(4 * layer);
            }
            numbers.insert(name, (tensor.dtype(), tensor.shape().to_vec(), bytes));
        }
    }
    let views = numbers
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    dir
}

/// How many layers a model has, and how many words it knows.
pub(crate) fn size(dir: &Path) -> (u16, u32) {
    let config = ModelConfig::read(dir).unwrap();
    (config.layers.get(), u32::try_from(config.vocab_size).unwrap())
}

/// A stage of some layers of a model, as a provider would load it.
pub(crate) fn stage(dir: &Path, (first, end): (u16, u16), layers: u16) -> ModelStage {
    let range = LayerRange::new(first, end).unwrap();
    let shard = Shard { layers: range, embed: first == 0, head: end == layers };
    let model = Model::load_with(dir, &LoadOptions { shard: Some(shard), ..LoadOptions::exact() }).unwrap();
    ModelStage::new(model, TokenCount::new(512), 4)
}

/// Every way to cut so many layers into runs: one for each set of places between two layers.
pub(crate) fn splits(layers: u16) -> impl Iterator<Item = Vec<(u16, u16)>> {
    (0..1_u32 << (layers - 1)).map(move |cuts| {
        let inner = (1..layers).filter(|place| cuts >> (place - 1) & 1 == 1);
        let ends: Vec<u16> = inner.chain([layers]).collect();
        let firsts = [0].into_iter().chain(ends.iter().copied());
        firsts.zip(ends.iter().copied()).collect()
    })
}

/// What one step of a session is made of.
pub(crate) struct Said {
    pub(crate) session: JobId,
    pub(crate) position: u32,
    pub(crate) tokens: Vec<u32>,
    pub(crate) want: Want,
}

/// The sessions of a [`conversation`].
pub(crate) const SESSIONS: [JobId; 2] = [JobId::from_bits(1), JobId::from_bits(2)];

/// Batches of steps of two sessions: a prompt in pieces, tokens one by one, and two sessions at once.
pub(crate) fn conversation(vocabulary: u32) -> Vec<Vec<Said>> {
    let said = |session, position: u32, count: u32, want| Said {
        session: JobId::from_bits(session),
        position,
        tokens: (position..position + count).map(|at| (at * 7 + 3 + at * at) % vocabulary).collect(),
        want,
    };
    vec![
        vec![said(1, 0, 5, Want::Nothing)],
        vec![said(1, 5, 3, Want::Logits), said(2, 0, 2, Want::Token)],
        vec![said(1, 8, 1, Want::Token), said(2, 2, 1, Want::Logits)],
        vec![said(2, 3, 34, Want::Token)],
        vec![said(1, 9, 1, Want::Logits)],
    ]
}

/// How the tokens of a [`conversation`] are picked.
pub(crate) fn sampling() -> Sampling {
    Sampling { seed: 5, top_logprobs: Some(2), ..Sampling::default() }
}

pub(crate) fn opening(sampling: Sampling) -> Opening {
    Opening { positions: TokenCount::new(40), sampling, seen: Vec::new(), picks: TokenCount::ZERO }
}

/// What a chain of stages gives for a conversation, in order.
pub(crate) fn run(stages: &mut [&mut ModelStage], conversation: &[Vec<Said>]) -> Vec<StageOutput> {
    for stage in stages.iter_mut() {
        SESSIONS.into_iter().for_each(|session| stage.open(session, &opening(sampling())).unwrap());
    }
    let mut given = Vec::new();
    for batch in conversation {
        let mut inputs: Vec<Input> = batch.iter().map(|said| Input::Tokens(said.tokens.clone())).collect();
        for stage in stages.iter_mut() {
            let outputs = stage.forward(&steps(batch, inputs)).unwrap();
            inputs = Vec::new();
            for output in outputs {
                match output {
                    StageOutput::Hidden(numbers) => inputs.push(over_the_wire(&numbers)),
                    last => given.push(last),
                }
            }
        }
    }
    for stage in stages.iter_mut() {
        SESSIONS.into_iter().for_each(|session| stage.close(session));
    }
    given
}

/// The steps of a batch for a stage.
pub(crate) fn steps(batch: &[Said], inputs: Vec<Input>) -> Vec<StageStep> {
    let step = |(said, input): (&Said, Input)| {
        let Said { session, position, want, .. } = *said;
        StageStep { session, position, input, want }
    };
    batch.iter().zip(inputs).map(step).collect()
}

fn over_the_wire(numbers: &[f32]) -> Input {
    let shape = Shape { rows: 1, cols: u32::try_from(numbers.len()).unwrap() };
    Input::Hidden(tensor::decode(Dtype::F32, shape, &tensor::encode(Dtype::F32, numbers)).unwrap())
}

/// Whether two chains gave the same, to the bit.
pub(crate) fn same(one: &[StageOutput], other: &[StageOutput]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
}

fn is_same(one: &StageOutput, other: &StageOutput) -> bool {
    use StageOutput::{Logits, Token};
    match (one, other) {
        (Logits(one), Logits(other)) => {
            one.iter().map(|number| number.to_bits()).eq(other.iter().map(|number| number.to_bits()))
        }
        (Token { token, logprob }, Token { token: other, logprob: likely }) => {
            token == other && logprob.as_ref().map(bits) == likely.as_ref().map(bits)
        }
        (one, other) => one == other,
    }
}

fn bits(Logprob { logprob, top }: &Logprob) -> (u32, Vec<(u32, u32)>) {
    (logprob.to_bits(), top.iter().map(|(token, logprob)| (*token, logprob.to_bits())).collect())
}
