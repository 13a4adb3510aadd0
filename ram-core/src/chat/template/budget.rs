//! What one rendering may build: a bound on the bytes of all values that a template makes along the way.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Longest text, and most bytes of a list, that a template may build: nothing longer can be printed.
pub(super) const VALUE_BYTES_MAX: usize = super::PROMPT_BYTES_MAX;
/// Most items of one list or text that are held as values of their own.
const ITEM_BYTES: usize = 32;

/// What is left to one rendering. What was built counts to the end, whether it is still held or not.
struct Budget {
    left: usize,
}

/// The cause that an overdraft leaves, to be found again by whoever reads the error.
#[derive(Debug, thiserror::Error)]
#[error("a template built too much")]
pub(super) struct Spent;

/// The error of a value that is too long.
pub(super) fn spent() -> Error {
    Error::new(ErrorKind::InvalidOperation, "built too much").with_source(Spent)
}

/// Takes `bytes` off the budget, before they are built where that can be told.
///
/// # Errors
/// [`Spent`], when one value is longer than [`VALUE_BYTES_MAX`] or all are than [`super::BUILT_BYTES_MAX`].
pub(super) fn spend(state: &mut State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let budget = state.get_or_insert_extension_with(|| Budget { left: super::BUILT_BYTES_MAX });
    match budget.left.checked_sub(bytes) {
        Some(left) if bytes <= VALUE_BYTES_MAX => {
            budget.left = left;
            Ok(())
        }
        _ => Err(spent()),
    }
}

/// A text that was built within [`VALUE_BYTES_MAX`], taken off the budget.
pub(super) fn text(state: &mut State<'_, '_>, text: String) -> Result<Value, Error> {
    spend(state, text.len())?;
    Ok(Value::from(text))
}

/// What a list of `items` takes.
pub(super) const fn list_bytes(items: usize) -> usize {
    items.saturating_mul(ITEM_BYTES)
}

/// What it takes to read a value once: the length of a text, or of a list of its items.
pub(super) fn size(value: &Value) -> usize {
    match value.kind() {
        ValueKind::String => value.as_str().map_or(0, str::len),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => list_bytes(value.len().unwrap_or(1)),
        _ => 0,
    }
}
