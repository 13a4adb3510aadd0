//! A mixture of experts (Shazeer et al. 2017): a gate picks some of many MLPs for each token.
//!
//! ```text
//! x (T, E) -> choices -> gate, up: each token through each of its experts -> down -> (T*k, E) -> weighed sums (T, E)
//! ```
//!
//! Few tokens go through their experts one by one. The choices of many are sorted by expert, so that an expert's
//! weights are read once for several tokens.

use candle_core::Tensor;

use super::attention::Pass;
use super::route::Router;
use super::stack::Stack;
use crate::config::MoeConfig;
use crate::error::InferError;
use crate::scope::Scope;

/// The experts of one layer.
pub(crate) struct Experts {
    router: Router,
    gate_proj: Stack,
    up_proj: Stack,
    down_proj: Stack,
}

impl Experts {
    /// Loads the experts at this place.
    ///
    /// # Errors
    /// Those of [`Router::load`] and [`Stack::load`]; [`InferError::UnsupportedArchitecture`] where there is an expert
    /// that all tokens take.
    pub(crate) fn load(at: &Scope<'_>, moe: &MoeConfig) -> Result<Self, InferError> {
        let (config, &MoeConfig { experts, expert_width, .. }) = (at.config(), moe);
        if moe.shared.is_some() {
            let model_type = config.architecture.to_string();
            return Err(InferError::UnsupportedArchitecture { model_type });
        }
        let width = config.hidden_size;
        let stack = |name: &str, outputs, inputs| {
            Stack::load(&at.enter("switch_mlp").enter(name), experts, outputs, inputs)
        };
        Ok(Self {
            router: Router::load(&at.enter("gate"), moe)?,
            gate_proj: stack("gate_proj", expert_width, width)?,
            up_proj: stack("up_proj", expert_width, width)?,
            down_proj: stack("down_proj", width, expert_width)?,
        })
    }

    /// `x` is (T, E); returns (T, E).
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> candle_core::Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let choices = self.router.choose(x)?;
        let found = match &pass.sorter {
            None => {
                let experts = choices.experts.flatten_all()?;
                // (T, E) -> (T*k, I) -> (T*k, E)
                let gate = self.gate_proj.forward(x, &experts)?.silu()?;
                let inner = (gate * self.up_proj.forward(x, &experts)?)?;
                self.down_proj.forward(&inner, &experts)?
            }
            Some(sorter) => {
                let sorted = sorter.sort(&choices.experts)?;
                // (T, E) -> (T*k, E) -> (T*k, I) -> (T*k, E), by slot, and then by choice
                let rows = x.index_select(&sorted.tokens, 0)?;
                let gate = self.gate_proj.forward_runs(&rows, &sorted.experts)?.silu()?;
                let inner = (gate * self.up_proj.forward_runs(&rows, &sorted.experts)?)?;
                self.down_proj.forward_runs(&inner, &sorted.experts)?.index_select(&sorted.slots, 0)?
            }
        };
        // (T, 1, k) x (T, k, E) -> (T, 1, E)
        let weights = choices.weights.to_dtype(x.dtype())?.unsqueeze(1)?;
        weights.matmul(&found.reshape((tokens, (), width))?)?.squeeze(1)
    }
}
