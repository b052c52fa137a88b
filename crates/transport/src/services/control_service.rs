//! The 43 methods of the Control service, both as they are served and as they are called.

use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use wire::control;
use wire::swarmkit as pb;

use super::{FORWARD_TIMEOUT, Front};
use crate::grpc;

macro_rules! control_service {
    ($($call:ident $name:ident $request:ident $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl grpc::control_server::Control for Front {
            $(
                async fn $call(
                    &self,
                    request: Request<pb::$request>,
                ) -> Result<Response<pb::$response>, Status> {
                    self.control(concat!("/docker.swarmkit.v1.Control/", stringify!($name)), request).await
                }
            )*
        }

        /// A call of the Control service on another manager.
        pub(crate) async fn control_call(
            client: &mut tonic::client::Grpc<Channel>,
            request: control::Request,
        ) -> Result<control::Response, Status> {
            match request {
                $(
                    control::Request::$name(request) => {
                        let path = concat!("/docker.swarmkit.v1.Control/", stringify!($name));
                        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
                        let codec = ProstCodec::<pb::$request, pb::$response>::default();
                        let mut request = Request::new(request);
                        request.set_timeout(FORWARD_TIMEOUT);
                        let answer = client.unary(request, path, codec).await?;
                        Ok(control::Response::$name(answer.into_inner()))
                    }
                )*
            }
        }
    };
}

control_service! {
    get_node GetNode GetNodeRequest GetNodeResponse,
    list_nodes ListNodes ListNodesRequest ListNodesResponse,
    update_node UpdateNode UpdateNodeRequest UpdateNodeResponse,
    remove_node RemoveNode RemoveNodeRequest RemoveNodeResponse,
    get_task GetTask GetTaskRequest GetTaskResponse,
    remove_task RemoveTask RemoveTaskRequest RemoveTaskResponse,
    list_tasks ListTasks ListTasksRequest ListTasksResponse,
    create_service CreateService CreateServiceRequest CreateServiceResponse,
    get_service GetService GetServiceRequest GetServiceResponse,
    update_service UpdateService UpdateServiceRequest UpdateServiceResponse,
    remove_service RemoveService RemoveServiceRequest RemoveServiceResponse,
    list_services ListServices ListServicesRequest ListServicesResponse,
    list_service_statuses ListServiceStatuses ListServiceStatusesRequest ListServiceStatusesResponse,
    create_network CreateNetwork CreateNetworkRequest CreateNetworkResponse,
    get_network GetNetwork GetNetworkRequest GetNetworkResponse,
    remove_network RemoveNetwork RemoveNetworkRequest RemoveNetworkResponse,
    list_networks ListNetworks ListNetworksRequest ListNetworksResponse,
    get_cluster GetCluster GetClusterRequest GetClusterResponse,
    list_clusters ListClusters ListClustersRequest ListClustersResponse,
    update_cluster UpdateCluster UpdateClusterRequest UpdateClusterResponse,
    get_secret GetSecret GetSecretRequest GetSecretResponse,
    update_secret UpdateSecret UpdateSecretRequest UpdateSecretResponse,
    list_secrets ListSecrets ListSecretsRequest ListSecretsResponse,
    create_secret CreateSecret CreateSecretRequest CreateSecretResponse,
    remove_secret RemoveSecret RemoveSecretRequest RemoveSecretResponse,
    get_config GetConfig GetConfigRequest GetConfigResponse,
    update_config UpdateConfig UpdateConfigRequest UpdateConfigResponse,
    list_configs ListConfigs ListConfigsRequest ListConfigsResponse,
    create_config CreateConfig CreateConfigRequest CreateConfigResponse,
    remove_config RemoveConfig RemoveConfigRequest RemoveConfigResponse,
    create_extension CreateExtension CreateExtensionRequest CreateExtensionResponse,
    remove_extension RemoveExtension RemoveExtensionRequest RemoveExtensionResponse,
    get_extension GetExtension GetExtensionRequest GetExtensionResponse,
    create_resource CreateResource CreateResourceRequest CreateResourceResponse,
    remove_resource RemoveResource RemoveResourceRequest RemoveResourceResponse,
    update_resource UpdateResource UpdateResourceRequest UpdateResourceResponse,
    get_resource GetResource GetResourceRequest GetResourceResponse,
    list_resources ListResources ListResourcesRequest ListResourcesResponse,
    create_volume CreateVolume CreateVolumeRequest CreateVolumeResponse,
    get_volume GetVolume GetVolumeRequest GetVolumeResponse,
    update_volume UpdateVolume UpdateVolumeRequest UpdateVolumeResponse,
    list_volumes ListVolumes ListVolumesRequest ListVolumesResponse,
    remove_volume RemoveVolume RemoveVolumeRequest RemoveVolumeResponse,
}
