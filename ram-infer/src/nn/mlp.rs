//! The gated MLP (SwiGLU; Shazeer 2020).

use super::linear::{self, Bias, Into, Linear};
use super::norm::RmsNorm;
use super::{Pass, Workspace, sized};
use crate::error::InferError;
use crate::scope::Scope;

/// `down(silu(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    /// Loads the MLP at this place, `inner` wide inside.
    ///
    /// # Errors
    /// Those of [`Linear::load`].
    pub(crate) fn load(at: &Scope<'_>, inner: usize) -> Result<Self, InferError> {
        let (width, bias) = (at.config().hidden_size, Bias::when(at.config().mlp_bias));
        Ok(Self {
            gate_proj: Linear::load(&at.enter("gate_proj"), inner, width, bias)?,
            up_proj: Linear::load(&at.enter("up_proj"), inner, width, bias)?,
            down_proj: Linear::load(&at.enter("down_proj"), width, inner, bias)?,
        })
    }

    /// Adds the MLP of `x`, (T, E), after a norm, to `x`.
    pub(crate) fn add_to(&self, x: &mut [f32], norm: &RmsNorm, pass: &Pass<'_>, space: &mut Workspace) {
        let inner = sized(&mut space.inner, pass.tokens() * self.gate_proj.outputs());
        let pair = [&self.gate_proj, &self.up_proj];
        linear::prepare_normed(pass, x, norm, &pair, &mut space.inputs).gated(pass, inner);
        let down = [&self.down_proj];
        linear::prepare(pass, inner, &down, &mut space.inputs).project(pass, Into::Add, &mut [x]);
    }

    /// Adds the MLP of `space.normed`, (T, E), to `x`, (T, E); each token's times its one of `scales`, (T), if given.
    pub(crate) fn add_of_normed_to(
        &self,
        x: &mut [f32],
        scales: Option<&[f32]>,
        pass: &Pass<'_>,
        space: &mut Workspace,
    ) {
        let width = self.gate_proj.outputs();
        let inner = sized(&mut space.inner, pass.tokens() * width);
        let pair = [&self.gate_proj, &self.up_proj];
        linear::prepare(pass, &space.normed[..x.len()], &pair, &mut space.inputs).gated(pass, inner);
        // The product that follows is linear, so its inputs may be scaled for its outputs.
        for (row, scale) in inner.chunks_exact_mut(width).zip(scales.into_iter().flatten()) {
            row.iter_mut().for_each(|x| *x *= scale);
        }
        let down = [&self.down_proj];
        linear::prepare(pass, inner, &down, &mut space.inputs).project(pass, Into::Add, &mut [x]);
    }
}
