//! What the coordinator shows of its network, to anybody who asks.

use std::collections::BTreeMap;

use ram_chain::pricing;
use ram_core::catalog::{self, ModelSpec};
use ram_core::id::{ModelId, ProviderId};
use ram_core::layers::LayerRange;
use ram_core::provider::ModelState;
use ram_core::route::{self, Refusal};
use ram_core::units::{Timestamp, TokenCount};
use ram_pipeline::group::State;
use ram_proto::control::shard::ShardStatus;
use ram_proto::openai::DEFAULT_MAX_TOKENS;
use ram_proto::rest::{
    ModelExplanation, ModelPrice, ModelStats, NetworkModel, NetworkModels, NetworkStats, PipelineList,
    PipelineShard, PipelineState, PipelineView, Pricing, ProviderList, ProviderView, Quote, ShardNow,
};

use super::Coordinator;
use super::groups::Pipeline;
use super::jobs::{JobRecord, Phase, wish_for};
use super::registry::Node;

/// Tokens of a usual request, for which a provider is explained: a page of prompt, and half of one as the answer.
const USUAL_PROMPT: TokenCount = TokenCount::new(512);
const USUAL_ANSWER: TokenCount = TokenCount::new(256);

impl Coordinator {
    /// The providers that are here.
    #[must_use]
    pub fn providers(&self) -> ProviderList {
        ProviderList { providers: self.registry.nodes().map(|(id, node)| self.view(id, node)).collect() }
    }

    /// One provider, if it is here.
    #[must_use]
    pub fn provider(&self, id: ProviderId) -> Option<ProviderView> {
        self.registry.node(id).map(|node| self.view(id, node))
    }

    /// One provider, if it is here, and for each model that it offers whether a usual request would reach it now. The
    /// reasons are those of the dispatcher, which answers the same question here.
    #[must_use]
    pub fn explain(&self, id: ProviderId, now: Timestamp) -> Option<ProviderView> {
        let node = self.registry.node(id)?;
        let explain = node.offers().filter_map(|offer| self.explain_model(id, node, &offer.model, now));
        Some(ProviderView {
            reputation: self.standings.of(id, now),
            silent_seconds: Some(now.since(node.last_word).as_secs()),
            explain: Some(explain.collect()),
            ..self.view(id, node)
        })
    }

    fn explain_model(
        &self,
        id: ProviderId,
        node: &Node,
        model: &ModelId,
        now: Timestamp,
    ) -> Option<ModelExplanation> {
        let spec = catalog::resolve(model.as_str())?;
        let refusal = if self.draining {
            Err("the coordinator is shutting down".to_owned())
        } else {
            let candidate = self.registry.candidate(id, node, model, self.standings.of(id, now), now);
            Ok(route::examine(&candidate, &wish_for(spec, USUAL_PROMPT, USUAL_ANSWER)).err())
        };
        let (refusal, why) = match refusal {
            Ok(Some(Refusal::Draining)) if self.registry.is_withdrawn(id) => (
                Some(Refusal::Draining),
                Some("the coordinator's operator took it out of service".to_owned()),
            ),
            Ok(refusal) => (refusal, refusal.map(|refusal| refusal.to_string())),
            Err(why) => (None, Some(why)),
        };
        let queued = self.jobs.queued(model) as u64;
        Some(ModelExplanation { model: model.clone(), would_serve: why.is_none(), refusal, why, queued })
    }

    fn view(&self, id: ProviderId, node: &Node) -> ProviderView {
        ProviderView {
            id,
            name: node.spec.name.clone(),
            version: node.spec.version.clone(),
            hardware: node.spec.hardware.clone(),
            memory_cap: node.spec.memory_cap,
            models: node.offers().cloned().collect(),
            load: node.load_now(),
            online_since: node.since,
            draining: self.registry.is_draining(id, node),
            withdrawn: self.registry.is_withdrawn(id),
            reputation: self.standings.of(id, self.ticked_at),
            lends: node.shards.lends.map(|lends| lends.memory),
            silent_seconds: None,
            explain: None,
        }
    }

    /// The models that several providers hold together.
    #[must_use]
    pub fn pipelines(&self) -> PipelineList {
        let view = |(model, pipeline)| self.pipeline_view(model, pipeline);
        PipelineList { pipelines: self.groups.iter().map(view).collect() }
    }

    fn pipeline_view(&self, model: &ModelId, pipeline: &Pipeline) -> PipelineView {
        let group = &pipeline.group;
        let shard = |(provider, layers)| self.pipeline_shard(pipeline, provider, layers);
        let runs = |job: &&JobRecord| {
            job.ask.model() == model && matches!(&job.phase, Phase::Running(run) if run.group.is_some())
        };
        PipelineView {
            id: group.id(),
            model: model.clone(),
            state: match group.state() {
                State::Loading => PipelineState::Loading,
                State::Planning | State::Ended(_) => PipelineState::Planning,
                State::Linking => PipelineState::Linking,
                State::Ready => PipelineState::Ready,
            },
            epoch: group.epoch(),
            since: pipeline.since,
            shards: group.holders().map(shard).collect(),
            spares: group.warm_spares().map(shard).collect(),
            expected_single: group.expected().single,
            expected_saturated: group.expected().saturated,
            running: self.jobs.iter().filter(runs).count() as u64,
            queued: self.jobs.queued(model) as u64,
        }
    }

    fn pipeline_shard(&self, pipeline: &Pipeline, provider: ProviderId, layers: LayerRange) -> PipelineShard {
        let node = self.registry.node(provider);
        let now = node.and_then(|node| pipeline.status(node, layers)).map(|status| {
            let ShardStatus { sessions, kv_free, step_us, hop_us, .. } = *status;
            ShardNow { sessions, kv_free, step_us, hop_us }
        });
        let name = node.map(|node| node.spec.name.clone());
        PipelineShard { provider, name, layers, memory: pipeline.needs(layers), now }
    }

    /// Models that at least one provider has in memory, by full id.
    #[must_use]
    pub fn loaded_models(&self) -> Vec<ModelId> {
        let loaded = |model: &&ModelId| {
            self.registry
                .offering(model)
                .any(|(_, node)| node.offer(model).is_some_and(|offer| offer.state == ModelState::Loaded))
        };
        self.registry.models().filter(loaded).cloned().collect()
    }

    /// The network as a whole.
    #[must_use]
    pub fn stats(&self) -> NetworkStats {
        let nodes = || self.registry.nodes().map(|(_, node)| node);
        NetworkStats {
            providers_online: nodes().len() as u64,
            memory_total: nodes().map(|node| node.spec.memory_cap).sum(),
            memory_available: nodes().map(|node| node.load.memory_free).sum(),
            jobs_done: self.totals.jobs_done,
            jobs_failed: self.totals.jobs_failed,
            jobs_running: self.jobs.len() as u64,
            tokens_served: self.totals.tokens,
            xram_charged: self.totals.charged,
            models: self.model_stats(),
        }
    }

    /// The catalogue, with who serves each model, how fast and at which price.
    #[must_use]
    pub fn network_models(&self) -> NetworkModels {
        let models = catalog::all().iter().filter_map(|spec| self.network_model(spec)).collect();
        NetworkModels { models }
    }

    fn network_model(&self, spec: &ModelSpec) -> Option<NetworkModel> {
        let model = spec.model_id();
        let offers = || self.registry.offering(&model).filter_map(|(_, node)| node.offer(&model));
        Some(NetworkModel {
            alias: spec.alias.parse().ok()?,
            context: spec.context(),
            weights: spec.weight_bytes(),
            providers: offers().count() as u64,
            loaded: offers().filter(|offer| offer.state == ModelState::Loaded).count() as u64,
            price_per_1k: pricing::price_per_1k(spec.rate(), self.multiplier),
            speed: offers().filter_map(|offer| offer.speed).max_by_key(|speed| speed.decode),
            model,
        })
    }

    /// What 1,000 tokens cost now.
    #[must_use]
    pub fn pricing(&self) -> Pricing {
        let price = |spec: &ModelSpec| {
            Some(ModelPrice {
                model: spec.model_id(),
                alias: spec.alias.parse().ok()?,
                rate_per_1k: spec.rate(),
                price_per_1k: pricing::price_per_1k(spec.rate(), self.multiplier),
            })
        };
        Pricing {
            multiplier: self.multiplier.permille(),
            floor: pricing::PRICE_FLOOR,
            ceiling: pricing::PRICE_CEILING,
            models: catalog::all().iter().filter_map(price).collect(),
        }
    }

    /// What a request can cost at most, were it taken now; `None` for a model that the catalogue does not know.
    #[must_use]
    pub fn quote(
        &self,
        model: ModelId,
        prompt_tokens: TokenCount,
        max_tokens: Option<TokenCount>,
    ) -> Option<Quote> {
        let spec = catalog::resolve(model.as_str())?;
        let price_per_1k = pricing::price_per_1k(spec.rate(), self.multiplier);
        let max_tokens = max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).min(spec.context());
        let cost_max = pricing::worst_case(price_per_1k, prompt_tokens, max_tokens)?;
        let fits = prompt_tokens < spec.context();
        Some(Quote { model, price_per_1k, prompt_tokens, max_tokens, fits, cost_max })
    }

    fn model_stats(&self) -> Vec<ModelStats> {
        let mut models: BTreeMap<&ModelId, ModelStats> = BTreeMap::new();
        for model in self.registry.models() {
            let fresh = ModelStats { model: model.clone(), providers: 0, loaded: 0 };
            let stats = models.entry(model).or_insert(fresh);
            for (_, node) in self.registry.offering(model) {
                stats.providers += 1;
                let loaded = node.offer(model).is_some_and(|offer| offer.state == ModelState::Loaded);
                stats.loaded += u64::from(loaded);
            }
        }
        models.into_values().collect()
    }
}
