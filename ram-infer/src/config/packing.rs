//! How weights are packed: MLX's formats, and what config.json says of single modules.
//!
//! | mode | bits | weights that share a scale | scale | zero point |
//! |---|---|---|---|---|
//! | `affine` | 2, 3, 4, 5, 6, 8 | 32, 64, 128 | a float | a float, the bias |
//! | `mxfp4` | 4, as e2m1 | 32 | 8 bits, e8m0 | none |
//! | `nvfp4` | 4, as e2m1 | 16 | 8 bits, e4m3 | none |
//! | `mxfp8` | 8, as e4m3 | 32 | 8 bits, e8m0 | none |

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::WIDTH_MAX;
use super::fields::Fields;
use crate::error::InferError;

/// How a model's weights are packed, with a word for single modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// The format that most modules have. What a module's own shapes say goes before it, as in mlx-lm.
    pub format: Format,
    /// Modules with a format of their own, by path (`model.layers.0.mlp.down_proj`).
    pub overrides: BTreeMap<String, ModuleFormat>,
}

/// How one module is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleFormat {
    /// Not packed.
    Plain,
    /// Packed so.
    Packed(Format),
}

/// A way to pack a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Whole numbers with a scale and a bias for each group: `w = scale * q + bias`.
    Affine(AffineFormat),
    /// Floats of 4 bits with a power of two for each 32 (OCP Microscaling).
    Mxfp4,
    /// Floats of 4 bits with a float of 8 bits for each 16.
    Nvfp4,
    /// Floats of 8 bits with a power of two for each 32 (OCP Microscaling).
    Mxfp8,
}

/// `bits` per weight in groups of `group_size` that share a scale and a bias: `w = scale * q + bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffineFormat {
    bits: usize,
    group_size: usize,
}

impl AffineFormat {
    /// A format of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128; `None` for any other.
    #[must_use]
    pub const fn new(bits: usize, group_size: usize) -> Option<Self> {
        match (bits, group_size) {
            (2..=6 | 8, 32 | 64 | 128) => Some(Self { bits, group_size }),
            _ => None,
        }
    }

    /// Bits per weight: 2, 3, 4, 5, 6 or 8.
    #[must_use]
    pub const fn bits(self) -> usize {
        self.bits
    }

    /// Weights that share a scale: 32, 64 or 128.
    #[must_use]
    pub const fn group_size(self) -> usize {
        self.group_size
    }
}

impl fmt::Display for AffineFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "affine, {} bits in groups of {}", self.bits, self.group_size)
    }
}

impl Format {
    /// Bits per weight.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Affine(affine) => affine.bits,
            Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
        }
    }

    /// Weights that share a scale.
    #[must_use]
    pub const fn group_size(self) -> usize {
        match self {
            Self::Affine(affine) => affine.group_size,
            Self::Mxfp4 | Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
        }
    }

    /// The format of rows of `cols` weights that are stored as `words` of 32 bits and `scales` scales, as mlx-lm infers
    /// it. `floats` says that the scales are floats of 16 or 32 bits; without, they have 8.
    ///
    /// `None` when no format has such rows.
    pub(crate) fn of_rows(cols: usize, words: usize, scales: usize, floats: bool) -> Option<Self> {
        let bits = words.checked_mul(32).filter(|bits| bits.is_multiple_of(cols))? / cols;
        let group_size = cols.checked_div(scales).filter(|size| size * scales == cols)?;
        match (bits, group_size) {
            _ if floats => AffineFormat::new(bits, group_size).map(Self::Affine),
            (4, 32) => Some(Self::Mxfp4),
            (4, 16) => Some(Self::Nvfp4),
            (8, 32) => Some(Self::Mxfp8),
            _ => None,
        }
    }

    /// Reads `mode`, `bits` and `group_size`. What is left out is as MLX has it: for a single module too, whatever the
    /// other modules have.
    fn parse(fields: &Fields<'_>) -> Result<Self, InferError> {
        let mode = fields.text("mode")?.unwrap_or("affine");
        let bits = fields.count("bits", 64)?;
        let group_size = fields.count("group_size", WIDTH_MAX)?;
        let format = match mode {
            "affine" => AffineFormat::new(bits.unwrap_or(4), group_size.unwrap_or(64)).map(Self::Affine),
            "mxfp4" => Some(Self::Mxfp4),
            "nvfp4" => Some(Self::Nvfp4),
            "mxfp8" => Some(Self::Mxfp8),
            other => return Err(fields.unsupported_packing(other)),
        };
        let agrees = |format: &Self| {
            bits.is_none_or(|bits| bits == format.bits())
                && group_size.is_none_or(|size| size == format.group_size())
        };
        let shown = |number: Option<usize>| number.map_or_else(|| "unstated".to_owned(), |n| n.to_string());
        let refused = || format!("{mode}, {} bits in groups of {}", shown(bits), shown(group_size));
        if fields.flag("global_scale")? == Some(true) {
            return Err(fields.unsupported_packing("floats with one more scale for the whole module"));
        }
        format.filter(agrees).ok_or_else(|| fields.unsupported_packing(&refused()))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affine(affine) => affine.fmt(f),
            Self::Mxfp4 => f.write_str("mxfp4"),
            Self::Nvfp4 => f.write_str("nvfp4"),
            Self::Mxfp8 => f.write_str("mxfp8"),
        }
    }
}

impl QuantizationConfig {
    /// Reads `quantization`, or else the `quantization_config` that mlx-lm writes beside it.
    pub(super) fn parse(fields: &Fields<'_>) -> Result<Option<Self>, InferError> {
        let found = match fields.nested("quantization")? {
            Some(found) => Some(found),
            None => fields.nested("quantization_config")?,
        };
        let Some(found) = found else { return Ok(None) };
        if let Some(method) = found.text("quant_method")? {
            return Err(found.unsupported_packing(method));
        }
        let format = Format::parse(&found)?;
        let mut overrides = BTreeMap::new();
        for (path, value) in found.map {
            match value {
                Value::Bool(false) => _ = overrides.insert(path.clone(), ModuleFormat::Plain),
                Value::Bool(true) => _ = overrides.insert(path.clone(), ModuleFormat::Packed(format)),
                Value::Object(map) => {
                    let own = Format::parse(&found.inner(path, map))?;
                    overrides.insert(path.clone(), ModuleFormat::Packed(own));
                }
                _ => {}
            }
        }
        Ok(Some(Self { format, overrides }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(quantization: &Value) -> Result<QuantizationConfig, InferError> {
        let config = json!({"quantization": quantization});
        QuantizationConfig::parse(&Fields::of("config.json", &config)?).map(Option::unwrap)
    }

    fn affine(bits: usize, group_size: usize) -> Format {
        Format::Affine(AffineFormat::new(bits, group_size).unwrap())
    }

    #[test]
    fn a_module_may_have_a_packing_of_its_own() {
        let found = read(&json!({"group_size": 64, "bits": 4, "mode": "affine",
            "a": {"bits": 8}, "b": {"group_size": 32, "bits": 8}, "c": false, "d": true, "e": {"mode": "mxfp4"}}))
        .unwrap();
        let expected = [
            ("a", ModuleFormat::Packed(affine(8, 64))),
            ("b", ModuleFormat::Packed(affine(8, 32))),
            ("c", ModuleFormat::Plain),
            ("d", ModuleFormat::Packed(affine(4, 64))),
            ("e", ModuleFormat::Packed(Format::Mxfp4)),
        ];
        assert_eq!(found.overrides, expected.map(|(path, format)| (path.to_owned(), format)).into());
    }

    #[test]
    fn a_module_of_its_own_takes_nothing_from_the_others() {
        let router = json!({"group_size": 64, "bits": 8});
        let found = read(&json!({"mode": "nvfp4", "bits": 4, "group_size": 16, "gate": router})).unwrap();
        assert_eq!(found.format, Format::Nvfp4);
        assert_eq!(found.overrides["gate"], ModuleFormat::Packed(affine(8, 64)));
    }

    #[test]
    fn every_format_of_mlx_reads_and_no_other() {
        for bits in [2, 3, 4, 5, 6, 8] {
            for group_size in [32, 64, 128] {
                let found = read(&json!({"bits": bits, "group_size": group_size})).unwrap();
                assert_eq!(found.format, affine(bits, group_size));
            }
        }
        for other in [
            json!({"bits": 7}),
            json!({"bits": 1}),
            json!({"bits": 4, "group_size": 16}),
            json!({"mode": "mxfp4", "group_size": 64}),
            json!({"mode": "mxfp8", "bits": 4}),
            json!({"mode": "fp6"}),
            json!({"quant_method": "awq"}),
            json!({"mode": "nvfp4", "a": {"mode": "nvfp4", "global_scale": true}}),
        ] {
            let error = read(&other).unwrap_err();
            assert!(matches!(error, InferError::UnsupportedQuantization { .. }), "{other}: {error:?}");
        }
    }

    #[test]
    fn shapes_tell_the_format() {
        let check = |shapes: (usize, usize, usize, bool), expected| {
            let (cols, words, scales, floats) = shapes;
            assert_eq!(Format::of_rows(cols, words, scales, floats), expected, "{shapes:?}");
        };
        check((128, 12, 2, true), Some(affine(3, 64)));
        check((4096, 640, 128, true), Some(affine(5, 32)));
        check((64, 8, 2, true), Some(affine(4, 32)));
        check((64, 8, 2, false), Some(Format::Mxfp4));
        check((64, 8, 4, false), Some(Format::Nvfp4));
        check((64, 16, 2, false), Some(Format::Mxfp8));
        check((64, 16, 4, false), None);
        check((64, 7, 2, true), None);
        check((64, 8, 3, true), None);
        check((64, 8, 0, true), None);
        check((64, usize::MAX, 1, true), None);
    }
}
