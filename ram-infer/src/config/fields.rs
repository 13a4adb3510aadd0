//! One JSON object of a model's folder, read field by field and refused by name.

use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::InferError;

/// The fields of one JSON object, read by name and refused by name. `null` counts as absent.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    file: &'static str,
    /// What stands before a field's name in an error: `rope_scaling.`
    prefix: String,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The fields of a whole file.
    pub(super) fn of(file: &'static str, value: &'a Value) -> Result<Self, InferError> {
        let Value::Object(map) = value else {
            let problem = "the file's content is no object".to_owned();
            return Err(InferError::MalformedJson { file: file.to_owned(), problem });
        };
        Ok(Self { file, prefix: String::new(), map })
    }

    /// The fields of an object inside of this one.
    pub(super) fn inner(&self, name: &str, map: &'a Map<String, Value>) -> Self {
        Self { file: self.file, prefix: format!("{}{name}.", self.prefix), map }
    }

    /// What stands under a name.
    pub(super) fn find(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// What `read` finds, which must be there.
    pub(super) fn required<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Self, &'static str) -> Result<Option<T>, InferError>,
    ) -> Result<T, InferError> {
        read(self, name)?.ok_or_else(|| self.missing(name))
    }

    /// An object.
    pub(super) fn nested(&self, name: &str) -> Result<Option<Self>, InferError> {
        match self.find(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.inner(name, map))),
            Some(_) => Err(self.bad(name, "an object".to_owned())),
        }
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, InferError> {
        let Some(value) = self.find(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(name, "a text".to_owned()))
    }

    /// True or false.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, InferError> {
        let Some(value) = self.find(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.bad(name, "true or false".to_owned()))
    }

    /// A whole number from 1 to `most`.
    pub(super) fn count(&self, name: &str, most: usize) -> Result<Option<usize>, InferError> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        let good = count.filter(|count| (1..=most).contains(count));
        good.map(Some).ok_or_else(|| self.bad(name, format!("a whole number from 1 to {most}")))
    }

    /// A whole number from 0 to `most`.
    pub(super) fn count_or_none(&self, name: &str, most: usize) -> Result<Option<usize>, InferError> {
        let none = self.find(name).is_some_and(|value| value.as_u64() == Some(0));
        if none { Ok(Some(0)) } else { self.count(name, most) }
    }

    /// A number of layers, from 1 to `most`.
    pub(super) fn layers(&self, name: &str, most: u16) -> Result<Option<NonZeroU16>, InferError> {
        let count = self.count(name, usize::from(most))?;
        Ok(count.and_then(|count| u16::try_from(count).ok()).and_then(NonZeroU16::new))
    }

    /// A number of a range.
    pub(super) fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, InferError> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let good = value.as_f64().filter(|number| range.contains(number));
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        good.map(Some).ok_or_else(|| self.bad(name, expected()))
    }

    /// A small number, rounded to f32.
    #[expect(clippy::cast_possible_truncation, reason = "rounds")]
    pub(super) fn small(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, InferError> {
        Ok(self.number(name, range)?.map(|number| number as f32))
    }

    /// One token or a list of tokens.
    pub(super) fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>, InferError> {
        let Some(value) = self.find(name) else { return Ok(None) };
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = match value {
            Value::Array(list) if list.len() <= EOS_TOKENS_MAX => list.iter().map(token).collect(),
            one => token(one).map(|id| vec![id]),
        };
        let expected = || format!("a token, or a list of at most {EOS_TOKENS_MAX} tokens");
        tokens.map(Some).ok_or_else(|| self.bad(name, expected()))
    }

    /// That a field is not there.
    pub(super) fn missing(&self, name: &str) -> InferError {
        InferError::MissingField { file: self.file.to_owned(), field: format!("{}{name}", self.prefix) }
    }

    /// That a field holds what no model could mean.
    pub(super) fn bad(&self, name: &str, expected: String) -> InferError {
        InferError::BadField {
            file: self.file.to_owned(),
            field: format!("{}{name}", self.prefix),
            value: self.find(name).map_or_else(|| "null".to_owned(), |value| shortened(&value.to_string())),
            expected,
        }
    }

    /// That a field asks for what this engine does not do.
    pub(super) fn unsupported(&self, name: &str, value: &str) -> InferError {
        InferError::Unsupported {
            file: self.file.to_owned(),
            field: format!("{}{name}", self.prefix),
            value: shortened(value),
        }
    }

    /// That these weights are packed in a way that this engine cannot read.
    pub(super) fn unsupported_packing(&self, format: &str) -> InferError {
        let path = self.prefix.trim_end_matches('.').to_owned();
        InferError::UnsupportedQuantization { path, format: shortened(format) }
    }
}

/// A stranger's text, cut to what an error line can show.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Models end their answers with one to five tokens.
const EOS_TOKENS_MAX: usize = 64;
/// What an error line can show of a stranger's text.
const SHOWN_CHARS_MAX: usize = 80;
