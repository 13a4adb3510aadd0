//! What a model needs of the nodes that hold it, layer by layer.

use ram_core::catalog::{FeedForward, ModelSpec};
use ram_core::checkpoint::Role;
use ram_core::layers::LayerRange;
use ram_core::memory::{Breakdown, PREFILL_CHUNK, Workload};
use ram_core::units::{Bytes, TokenCount};

/// A model, as far as a plan needs to know it.
///
/// Layers differ: DeepSeek's first ones are dense, every fourth of Qwen 3.5's attends and the others keep a state. So
/// each is counted by itself, and an average would put the borders in the wrong places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelNeeds {
    layers: Vec<LayerNeeds>,
    embedding: Bytes,
    head: Bytes,
    /// Whether the head is the embedding.
    tied: bool,
    hop: Bytes,
    /// Of one token, at the widest moment of a pass.
    activations: Bytes,
    context: TokenCount,
    /// Of a layer that has some.
    experts: Experts,
}

/// How many experts a layer has, and how many of them a token takes: all, where there is no choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// All.
    pub all: u64,
    /// Those of one token.
    pub of_token: u64,
}

impl Experts {
    /// Of a dense model.
    pub const ONE: Self = Self { all: 1, of_token: 1 };
}

/// What one layer needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerNeeds {
    /// All its weights.
    pub weights: Bytes,
    /// Those that one token reads: of experts only the chosen ones.
    pub read: Bytes,
    /// Keys and values of one position.
    pub kv_per_token: Bytes,
    /// The state of one session, however long.
    pub state: Bytes,
}

impl ModelNeeds {
    /// The needs of a model of the catalogue, computed from its shape.
    ///
    /// # Panics
    /// Never: a layer's number and the next one are a run of layers.
    #[must_use]
    pub fn of(model: &ModelSpec) -> Self {
        let (shape, stored) = (model.shape, model.quantization);
        let layer = |number| {
            let layer = LayerRange::new(number, number + 1).expect("a layer is a run of one");
            LayerNeeds {
                weights: stored.bytes(shape.total_in(layer)),
                read: stored.bytes(shape.active_in(layer)),
                kv_per_token: model.kv_bytes_per_token(layer),
                state: model.state_bytes(layer),
            }
        };
        let table = stored.bytes(shape.embedding());
        let experts = match shape.feed_forward {
            FeedForward::Dense { .. } => Experts::ONE,
            FeedForward::Experts { experts: all, active: of_token, .. } => Experts { all, of_token },
        };
        Self {
            layers: model.all_layers().iter().map(layer).collect(),
            embedding: table,
            head: table,
            tied: shape.tied,
            hop: Bytes::new(shape.hidden * RESIDUAL_BYTES),
            activations: Bytes::new(shape.activation_width() * ACTIVATION_BYTES),
            context: model.context(),
            experts,
        }
    }

    /// The same model with its weights as its files have them: the bytes of each tensor by its name in the checkpoint.
    ///
    /// What a token reads of a layer stays the same share of its weights. Tensors that belong to no layer, embedding or
    /// head, such as an image's encoder, are not held by any stage; the last norm is, and is too small to count. Of a
    /// layer of which nothing is named, the shape's figures stay.
    #[must_use]
    pub fn with_tensors<'a>(mut self, tensors: impl IntoIterator<Item = (&'a str, Bytes)>) -> Self {
        let mut layers = vec![Bytes::ZERO; self.layers.len()];
        let (mut embedding, mut head) = (Bytes::ZERO, Bytes::ZERO);
        for (name, bytes) in tensors {
            match Role::of(name) {
                Role::Layer(number) => {
                    if let Some(layer) = layers.get_mut(usize::from(number)) {
                        *layer += bytes;
                    }
                }
                Role::Embed => embedding += bytes,
                Role::Head => head += bytes,
                Role::Norm | Role::Other => {}
            }
        }
        for (layer, found) in self.layers.iter_mut().zip(layers).filter(|(_, found)| *found > Bytes::ZERO) {
            layer.read = share(layer.read, found, layer.weights);
            layer.weights = found;
        }
        if embedding > Bytes::ZERO {
            self.tied = head == Bytes::ZERO;
            (self.embedding, self.head) = (embedding, if self.tied { embedding } else { head });
        }
        self
    }

    /// Its layers, in order.
    #[must_use]
    pub fn layers(&self) -> &[LayerNeeds] {
        &self.layers
    }

    /// The longest session that it takes.
    #[must_use]
    pub const fn context(&self) -> TokenCount {
        self.context
    }

    /// What one token sends from stage to stage: the residual stream in the model's own type.
    #[must_use]
    pub const fn hop_bytes(&self) -> Bytes {
        self.hop
    }

    /// The memory that a stage takes.
    #[must_use]
    pub fn needs(&self, layers: LayerRange, workload: Workload) -> Breakdown {
        let run = &self.layers[usize::from(layers.first())..usize::from(layers.end())];
        let sum = |of: fn(&LayerNeeds) -> Bytes| run.iter().map(of).sum::<Bytes>();
        let slots = u64::from(workload.slots);
        let context = workload.context.min(self.context).get();
        let session = sum(|layer| layer.kv_per_token).saturating_mul(context) + sum(|layer| layer.state);
        let chunk = PREFILL_CHUNK.get().min(context).max(slots);
        Breakdown::new(
            sum(|layer| layer.weights) + self.ends(layers),
            session.saturating_mul(slots),
            self.activations.saturating_mul(chunk),
        )
    }

    /// What a stage reads for one token: of the embedding a row, which counts for nothing.
    #[must_use]
    pub fn read_bytes(&self, layers: LayerRange) -> Bytes {
        let run = &self.layers[usize::from(layers.first())..usize::from(layers.end())];
        let head = if self.is_last(layers) { self.head } else { Bytes::ZERO };
        run.iter().map(|layer| layer.read).sum::<Bytes>() + head
    }

    /// What a stage holds and one token does not read: the experts that it does not take.
    #[must_use]
    pub fn unread_bytes(&self, layers: LayerRange) -> Bytes {
        let run = &self.layers[usize::from(layers.first())..usize::from(layers.end())];
        run.iter().map(|layer| layer.weights.saturating_sub(layer.read)).sum()
    }

    /// Keys and values of one position in a stage.
    #[must_use]
    pub fn kv_bytes(&self, layers: LayerRange) -> Bytes {
        let run = &self.layers[usize::from(layers.first())..usize::from(layers.end())];
        run.iter().map(|layer| layer.kv_per_token).sum()
    }

    /// How many experts there are to choose from.
    #[must_use]
    pub const fn experts(&self) -> Experts {
        self.experts
    }

    /// The embedding of a first stage, the head of a last one; once where it is both and they are one.
    pub(super) fn ends(&self, layers: LayerRange) -> Bytes {
        match (layers.first() == 0, self.is_last(layers)) {
            (true, true) if self.tied => self.embedding,
            (true, true) => self.embedding + self.head,
            (true, false) => self.embedding,
            (false, true) => self.head,
            (false, false) => Bytes::ZERO,
        }
    }

    pub(super) fn is_last(&self, layers: LayerRange) -> bool {
        usize::from(layers.end()) == self.layers.len()
    }

    /// What the head reads for one token.
    pub(super) const fn head(&self) -> Bytes {
        self.head
    }

    /// How many layers: at least one, for a model of the catalogue has.
    pub(super) fn count(&self) -> usize {
        self.layers.len()
    }

    /// A model of these layers, for tests.
    #[cfg(test)]
    pub(super) fn made(layers: Vec<LayerNeeds>, embedding: Bytes, tied: bool) -> Self {
        let (hop, activations) = (Bytes::new(4096), Bytes::new(64));
        let (context, experts) = (TokenCount::new(1 << 17), Experts::ONE);
        Self { layers, embedding, head: embedding, tied, hop, activations, context, experts }
    }
}

/// `of * num / den`, rounded up.
fn share(of: Bytes, num: Bytes, den: Bytes) -> Bytes {
    let product = u128::from(of.get()) * u128::from(num.get());
    let share = product.div_ceil(u128::from(den.get()).max(1));
    Bytes::new(share.try_into().unwrap_or(u64::MAX))
}

/// Bytes of a number of the residual stream: bfloat16.
const RESIDUAL_BYTES: u64 = 2;
/// Bytes of an activation within a stage: float32.
const ACTIVATION_BYTES: u64 = 4;

#[cfg(test)]
mod tests {
    use ram_core::catalog;
    use ram_core::memory;

    use super::*;

    #[test]
    fn stages_need_what_the_memory_planner_says_of_their_layers() {
        for spec in catalog::all() {
            let (model, workload) = (ModelNeeds::of(spec), Workload::default());
            let layers = spec.layers().get();
            for (first, end) in [(0, layers), (0, 1), (layers - 1, layers), (layers / 3, layers / 3 + 1)] {
                let run = LayerRange::new(first, end).unwrap();
                let (ours, theirs) = (model.needs(run, workload), memory::needs(spec, Some(run), workload));
                let near = |x: Bytes, y: Bytes| x.get().abs_diff(y.get()) <= 8 << 20;
                assert!(near(ours.weights, theirs.weights), "{} {run:?}: {ours:?} {theirs:?}", spec.alias);
                assert_eq!(ours.cache, theirs.cache, "{} {run:?}", spec.alias);
            }
        }
    }

    #[test]
    fn tensors_take_the_place_of_the_shapes_figures() {
        let spec = catalog::resolve("llama-3.2-1b").unwrap();
        let layers = usize::from(spec.layers().get());
        let names: Vec<String> =
            (0..layers).map(|layer| format!("model.layers.{layer}.mlp.up_proj.weight")).collect();
        let sized =
            names.iter().enumerate().map(|(layer, name)| (name.as_str(), Bytes::new(1000 + layer as u64)));
        let others = [("model.embed_tokens.weight", Bytes::new(500)), ("vision.patch.weight", Bytes::new(7))];
        let model = ModelNeeds::of(spec).with_tensors(sized.chain(others));
        let weights: Vec<u64> = model.layers().iter().map(|layer| layer.weights.get()).collect();
        assert_eq!(weights, (0..layers as u64).map(|layer| 1000 + layer).collect::<Vec<_>>());
        assert!(model.layers().iter().all(|layer| layer.read == layer.weights), "a dense model reads all");
        assert_eq!((model.embedding, model.head, model.tied), (Bytes::new(500), Bytes::new(500), true));
        let untied = model
            .with_tensors([("model.embed_tokens.weight", Bytes::new(9)), ("lm_head.weight", Bytes::new(8))]);
        assert_eq!((untied.embedding, untied.head, untied.tied), (Bytes::new(9), Bytes::new(8), false));
    }

    #[test]
    fn of_experts_a_token_reads_a_few() {
        let model = ModelNeeds::of(catalog::resolve("qwen3-235b").unwrap());
        let all = LayerRange::new(0, 94).unwrap();
        // 22 of 235 billion parameters, at 4.5 bits.
        let read = model.read_bytes(all).get();
        assert!((12_000_000_000..12_500_000_000).contains(&read), "{read}");
    }
}
