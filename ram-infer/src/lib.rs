//! The inference engine: a model's folder in the MLX format becomes logits, and logits become an answer.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | what `config.json` says of a model, checked |
//! | [`models`] | the model: weights of a folder, and the forward pass; one architecture a file |
//! | [`batch`] | one pass over parts of many sequences |
//! | [`kv`] | keys and values of all sequences, in blocks |
//! | [`cache`] | those of one sequence, without an engine |
//! | [`tokenize`] | words to tokens, and tokens to text that streams |
//! | [`sample`] | which token comes next |
//! | [`constrain`] | which tokens a format leaves |
//! | [`stop`] | stop strings across token borders |
//! | [`engine`] | many requests at once, on a thread of their own |
//! | [`device`] | where the mathematics runs |
//! | [`error`] | what went wrong, and whose fault it is |
//!
//! Start at [`engine::Engine`], or at [`models::Model::load`] for logits alone. With the feature `demo` the bundled
//! model is part of the program (`demo::unpack`); with the feature `hub` models are fetched (`hub::Hub`).

pub mod batch;
pub mod cache;
pub mod config;
pub mod constrain;
#[cfg(feature = "demo")]
pub mod demo;
pub mod device;
pub mod engine;
pub mod error;
#[cfg(feature = "hub")]
pub mod hub;
pub mod kv;
pub mod logits;
pub mod models;
pub mod sample;
pub mod stop;
pub mod tokenize;

#[cfg(feature = "cuda")]
mod cuda;
mod folder;
mod gpu;
mod guard;
mod kernel;
#[cfg(feature = "metal")]
mod metal;
mod nn;
#[cfg(any(feature = "metal", feature = "cuda"))]
mod packed;
mod pool;
mod quant;
mod scope;
mod simd;
mod weights;
