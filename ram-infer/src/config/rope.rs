//! Rotary position encoding: the base of its wavelengths, and how they are stretched for a longer context.

use std::f64::consts::TAU;

use super::fields::Fields;
use super::{Architecture, CONTEXT_MAX};
use crate::error::InferError;

/// Rotary position encoding (Su et al. 2021): the base of its wavelengths, and how they are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base (`rope_theta`).
    pub theta: f64,
    /// How the wavelengths are stretched for a longer context.
    pub scaling: RopeScaling,
}

/// How the wavelengths of a rotary encoding are stretched for a context longer than the first training's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: the long waves by `factor`, the short ones not at all, those between by a smooth step.
    Llama3 {
        /// The factor for the long waves.
        factor: f64,
        /// A wave longer than `original_context / low_freq_factor` is long.
        low_freq_factor: f64,
        /// A wave shorter than `original_context / high_freq_factor` is short.
        high_freq_factor: f64,
        /// The context of the first training (`original_max_position_embeddings`).
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023): the long waves by `factor`, the short ones not at all, those between by a ramp over
    /// their numbers; and what is turned grows with the factor.
    Yarn {
        /// The factor for the long waves.
        factor: f64,
        /// The context of the first training (`original_max_position_embeddings`).
        original_context: f64,
        /// A wave that fits this context more often is short.
        beta_fast: f64,
        /// A wave that fits this context less often is long.
        beta_slow: f64,
        /// How much the numbers that are turned grow.
        mscale: f64,
        /// How much of that the scores take upon them, for all numbers of a head.
        mscale_all_dim: f64,
    },
}

impl RopeConfig {
    /// Reads transformers 5's `rope_parameters`, or else `rope_theta` and `rope_scaling`.
    pub(super) fn parse(fields: &Fields<'_>, architecture: Architecture) -> Result<Self, InferError> {
        let nested = nested(fields)?;
        let stated = match fields.number("rope_theta", THETA)? {
            Some(theta) => Some(theta),
            None => nested.as_ref().map(|nested| nested.number("rope_theta", THETA)).transpose()?.flatten(),
        };
        let theta = match (stated, architecture) {
            (Some(theta), _) => theta,
            // The first Llama and Mistral had one base and did not write it down.
            (None, Architecture::Llama | Architecture::Mistral) => 10_000.0,
            (None, _) => return Err(fields.missing("rope_theta")),
        };
        let scaling = nested.as_ref().map_or(Ok(RopeScaling::None), RopeScaling::parse)?;
        Ok(Self { theta, scaling })
    }

    /// By how much each pair of `width` turned numbers turns from one position to the next: (width/2).
    pub(crate) fn frequencies(&self, width: usize) -> Vec<f64> {
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / width as f64);
        (0..width / 2).map(|pair| self.stretched(plain(pair), pair, width)).collect()
    }

    /// What the turned numbers are multiplied with.
    pub(crate) fn magnitude(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { factor, mscale, mscale_all_dim, .. } => {
                grown(factor, mscale) / grown(factor, mscale_all_dim)
            }
            _ => 1.0,
        }
    }

    /// What scores of attention are multiplied with, beside `1 / sqrt(D)`, where the model's makers put YaRN's growth
    /// there (DeepSeek).
    pub(crate) fn score_scale(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { factor, mscale_all_dim, .. } => grown(factor, mscale_all_dim).powi(2),
            _ => 1.0,
        }
    }

    /// A frequency after the stretching of its wavelength.
    fn stretched(&self, frequency: f64, pair: usize, width: usize) -> f64 {
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                // How often the wave fits the first training's context.
                let waves = original_context * frequency / TAU;
                let smooth =
                    ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * ((1.0 - smooth) / factor + smooth)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
                // The pair whose wave fits the first training's context so often.
                let pair_of = |waves: f64| {
                    width as f64 * (original_context / (waves * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let low = pair_of(beta_fast).floor().max(0.0);
                let high = pair_of(beta_slow).ceil().min(width as f64 - 1.0);
                let high = if high > low { high } else { low + 0.001 };
                let long = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (long / factor + (1.0 - long))
            }
        }
    }
}

impl RopeScaling {
    /// Reads the inside of `rope_scaling` or `rope_parameters`.
    fn parse(fields: &Fields<'_>) -> Result<Self, InferError> {
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        let factor = |name| fields.required(name, |f, name| f.number(name, FACTOR));
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor("factor")? }),
            "llama3" => Self::parse_llama3(fields, factor("factor")?),
            "yarn" | "deepseek_yarn" => Self::parse_yarn(fields, factor("factor")?),
            other => Err(fields.unsupported("rope_type", other)),
        }
    }

    /// Llama 3's step, with the figures of Llama 3.1 for those left out (as in mlx-lm).
    fn parse_llama3(fields: &Fields<'_>, factor: f64) -> Result<Self, InferError> {
        let low_freq_factor = fields.number("low_freq_factor", FACTOR)?.unwrap_or(1.0);
        let high_freq_factor = fields.number("high_freq_factor", FACTOR)?.unwrap_or(4.0);
        if high_freq_factor <= low_freq_factor {
            return Err(
                fields.bad("high_freq_factor", format!("more than low_freq_factor, {low_freq_factor}"))
            );
        }
        let original_context = fields.number(ORIGINAL_CONTEXT, POSITIONS)?.unwrap_or(8192.0);
        Ok(Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context })
    }

    /// YaRN, with the figures of its paper for those left out (as in mlx-lm).
    fn parse_yarn(fields: &Fields<'_>, factor: f64) -> Result<Self, InferError> {
        let original_context = fields.required(ORIGINAL_CONTEXT, |f, name| f.number(name, POSITIONS))?;
        let beta_fast = fields.number("beta_fast", FACTOR)?.unwrap_or(32.0);
        let beta_slow = fields.number("beta_slow", FACTOR)?.unwrap_or(1.0);
        if beta_fast <= beta_slow {
            return Err(fields.bad("beta_fast", format!("more than beta_slow, {beta_slow}")));
        }
        if fields.flag("truncate")? == Some(false) {
            return Err(fields.unsupported("truncate", "false"));
        }
        let mscale = fields.number("mscale", MSCALE)?.unwrap_or(1.0);
        let mscale_all_dim = fields.number("mscale_all_dim", MSCALE)?.unwrap_or(0.0);
        let stated = fields.number("attention_factor", FACTOR)?;
        let computed = grown(factor, mscale) / grown(factor, mscale_all_dim);
        match stated.filter(|stated| (stated - computed).abs() > 1e-4) {
            Some(stated) => Err(fields.unsupported("attention_factor", &stated.to_string())),
            None => Ok(Self::Yarn { factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim }),
        }
    }
}

/// Refuses heads that are turned in part only.
pub(super) fn refuse_partial_rotation(fields: &Fields<'_>) -> Result<(), InferError> {
    match partial_rotation(fields)? {
        Some(factor) if factor < 1.0 => Err(fields.unsupported("partial_rotary_factor", &factor.to_string())),
        _ => Ok(()),
    }
}

/// `partial_rotary_factor`, wherever it stands: what part of a head is turned.
pub(super) fn partial_rotation(fields: &Fields<'_>) -> Result<Option<f64>, InferError> {
    let factor = |fields: &Fields<'_>| fields.number("partial_rotary_factor", 0.0..=1.0);
    match (factor(fields)?, nested(fields)?) {
        (None, Some(nested)) => factor(&nested),
        (stated, _) => Ok(stated),
    }
}

fn nested<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>, InferError> {
    match fields.nested("rope_parameters")? {
        Some(nested) => Ok(Some(nested)),
        None => fields.nested("rope_scaling"),
    }
}

/// YaRN's growth of what is turned by a stretched wave (Peng et al. 2023, eq. 22).
fn grown(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Bases known lie between 10 000 and 10 million.
const THETA: std::ops::RangeInclusive<f64> = 1.0..=1e12;
const FACTOR: std::ops::RangeInclusive<f64> = 1e-3..=1e6;
/// Known: 0 to 1.
const MSCALE: std::ops::RangeInclusive<f64> = 0.0..=1e3;
const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";
const POSITIONS: std::ops::RangeInclusive<f64> = 1.0..=CONTEXT_MAX as f64;
