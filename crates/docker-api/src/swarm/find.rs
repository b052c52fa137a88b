//! One object by id, name or the beginning of its id, in dockerd's order and words.

use std::sync::Arc;

use wire::swarmkit as pb;

use super::api::{ClusterApi, ControlCode, ControlError};
use super::fault::Fault;

pub type Cluster = Arc<dyn ClusterApi>;

macro_rules! finder {
    ($(#[$doc:meta])* $find:ident: $kind:literal, $object:ident,
     $get:ident { $id_field:ident } -> $one:ident,
     $list:ident($filters:ident) -> $many:ident) => {
        $(#[$doc])*
        // Some of the requests have fields beyond the one that is set here.
        #[allow(clippy::needless_update)]
        pub async fn $find(cluster: &Cluster, input: &str) -> Result<pb::$object, Fault> {
            let request = pb::$get { $id_field: input.to_owned(), ..Default::default() };
            match cluster.as_ref().call(request).await {
                Ok(answer) => {
                    return answer.$one.ok_or_else(|| Fault::not_found(format!("{} {input} not found", $kind)));
                }
                // Only "no such object" sends us on; no swarm and no leader are the answer.
                Err(error) if !matches!(error.code, ControlCode::NotFound | ControlCode::InvalidArgument) => {
                    return Err(error.into());
                }
                Err(_) => {}
            }
            let by = |filters| async move {
                let answer = cluster.as_ref().call(pb::$list { filters: Some(filters), ..Default::default() }).await?;
                Ok::<_, ControlError>(answer.$many)
            };
            use pb::$filters::Filters;
            let named = by(Filters { names: vec![input.to_owned()], ..Default::default() }).await?;
            let found = match named.len() {
                0 => by(Filters { id_prefixes: vec![input.to_owned()], ..Default::default() }).await?,
                _ => named,
            };
            only(found, $kind, input)
        }
    };
}

fn only<T>(mut found: Vec<T>, kind: &str, input: &str) -> Result<T, Fault> {
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Fault::not_found(format!("{kind} {input} not found"))),
        more => Err(Fault::bad(format!("{kind} {input} is ambiguous ({more} matches found)"))),
    }
}

finder!(service: "service", Service, GetServiceRequest { service_id } -> service,
    ListServicesRequest(list_services_request) -> services);
finder!(task: "task", Task, GetTaskRequest { task_id } -> task,
    ListTasksRequest(list_tasks_request) -> tasks);
finder!(secret: "secret", Secret, GetSecretRequest { secret_id } -> secret,
    ListSecretsRequest(list_secrets_request) -> secrets);
finder!(config: "config", Config, GetConfigRequest { config_id } -> config,
    ListConfigsRequest(list_configs_request) -> configs);
finder!(network: "network", Network, GetNetworkRequest { network_id } -> network,
    ListNetworksRequest(list_networks_request) -> networks);
finder!(node_by_id: "node", Node, GetNodeRequest { node_id } -> node,
    ListNodesRequest(list_nodes_request) -> nodes);

/// `self` is this node, as the CLI says it.
pub async fn node(cluster: &Cluster, input: &str) -> Result<pb::Node, Fault> {
    if input == "self" {
        let own = cluster.node_info().await.node_id;
        return node_by_id(cluster, &own).await;
    }
    node_by_id(cluster, input).await
}

/// The one cluster object.
pub async fn cluster(cluster: &Cluster) -> Result<pb::Cluster, Fault> {
    let answer = cluster.call(pb::ListClustersRequest::default()).await?;
    answer.clusters.into_iter().next().ok_or_else(|| {
        Fault::not_found("the swarm has no cluster object; this manager may be starting")
    })
}
