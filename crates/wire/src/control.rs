//! The Control service as two values: any request, any answer.
//!
//! The Engine API speaks only these, so it does not matter whether the leader is this process,
//! another skep or a Docker Engine manager.

use crate::swarmkit as pb;

macro_rules! control {
    ($($name:ident: $request:ident => $response:ident),* $(,)?) => {
        /// One call of the Control service.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request { $($name(pb::$request)),* }

        /// Its answer.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Response { $($name(pb::$response)),* }

        impl Request {
            /// The method's name on the wire, as in `/docker.swarmkit.v1.Control/<name>`.
            pub fn method(&self) -> &'static str {
                match self { $(Request::$name(_) => stringify!($name)),* }
            }
        }

        $(
            impl From<pb::$request> for Request {
                fn from(request: pb::$request) -> Self { Request::$name(request) }
            }
            impl Call for pb::$request {
                type Answer = pb::$response;
                fn answer(response: Response) -> Option<pb::$response> {
                    match response { Response::$name(answer) => Some(answer), _ => None }
                }
            }
        )*
    };
}

/// A request that knows the type of its answer.
pub trait Call: Into<Request> {
    type Answer;
    /// `None` when the answer belongs to another method.
    fn answer(response: Response) -> Option<Self::Answer>;
}

control! {
    GetNode: GetNodeRequest => GetNodeResponse,
    ListNodes: ListNodesRequest => ListNodesResponse,
    UpdateNode: UpdateNodeRequest => UpdateNodeResponse,
    RemoveNode: RemoveNodeRequest => RemoveNodeResponse,
    GetTask: GetTaskRequest => GetTaskResponse,
    RemoveTask: RemoveTaskRequest => RemoveTaskResponse,
    ListTasks: ListTasksRequest => ListTasksResponse,
    CreateService: CreateServiceRequest => CreateServiceResponse,
    GetService: GetServiceRequest => GetServiceResponse,
    UpdateService: UpdateServiceRequest => UpdateServiceResponse,
    RemoveService: RemoveServiceRequest => RemoveServiceResponse,
    ListServices: ListServicesRequest => ListServicesResponse,
    ListServiceStatuses: ListServiceStatusesRequest => ListServiceStatusesResponse,
    CreateNetwork: CreateNetworkRequest => CreateNetworkResponse,
    GetNetwork: GetNetworkRequest => GetNetworkResponse,
    RemoveNetwork: RemoveNetworkRequest => RemoveNetworkResponse,
    ListNetworks: ListNetworksRequest => ListNetworksResponse,
    GetCluster: GetClusterRequest => GetClusterResponse,
    ListClusters: ListClustersRequest => ListClustersResponse,
    UpdateCluster: UpdateClusterRequest => UpdateClusterResponse,
    GetSecret: GetSecretRequest => GetSecretResponse,
    UpdateSecret: UpdateSecretRequest => UpdateSecretResponse,
    ListSecrets: ListSecretsRequest => ListSecretsResponse,
    CreateSecret: CreateSecretRequest => CreateSecretResponse,
    RemoveSecret: RemoveSecretRequest => RemoveSecretResponse,
    GetConfig: GetConfigRequest => GetConfigResponse,
    UpdateConfig: UpdateConfigRequest => UpdateConfigResponse,
    ListConfigs: ListConfigsRequest => ListConfigsResponse,
    CreateConfig: CreateConfigRequest => CreateConfigResponse,
    RemoveConfig: RemoveConfigRequest => RemoveConfigResponse,
    CreateExtension: CreateExtensionRequest => CreateExtensionResponse,
    RemoveExtension: RemoveExtensionRequest => RemoveExtensionResponse,
    GetExtension: GetExtensionRequest => GetExtensionResponse,
    CreateResource: CreateResourceRequest => CreateResourceResponse,
    RemoveResource: RemoveResourceRequest => RemoveResourceResponse,
    UpdateResource: UpdateResourceRequest => UpdateResourceResponse,
    GetResource: GetResourceRequest => GetResourceResponse,
    ListResources: ListResourcesRequest => ListResourcesResponse,
    CreateVolume: CreateVolumeRequest => CreateVolumeResponse,
    GetVolume: GetVolumeRequest => GetVolumeResponse,
    UpdateVolume: UpdateVolumeRequest => UpdateVolumeResponse,
    ListVolumes: ListVolumesRequest => ListVolumesResponse,
    RemoveVolume: RemoveVolumeRequest => RemoveVolumeResponse,
}
