//! Extensions and resources: objects that SwarmKit keeps for others without a meaning of its own.

use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, invalid, lacking, name_taken, not_found, precondition, seen,
    store_error, stored, validate,
};

pub fn create(desk: &mut Desk<'_>, request: pb::CreateExtensionRequest) -> Decided {
    let name = validate::name(request.annotations.as_ref()).to_owned();
    if name.is_empty() {
        return Err(invalid("extension name must be provided"));
    }
    let id = desk.id();
    let extension = pb::Extension {
        id: id.clone(),
        annotations: request.annotations,
        description: request.description,
        ..Default::default()
    };
    let mut transaction = desk.transaction();
    transaction.create(extension).map_err(name_taken("extension", &name))?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let extension = Some(stored(store, &id)?);
            Ok(Response::CreateExtension(pb::CreateExtensionResponse { extension }))
        }),
    )
}

pub fn get(desk: &Desk<'_>, request: pb::GetExtensionRequest) -> Decided {
    let id = request.extension_id;
    let extension =
        desk.store.get::<pb::Extension>(&id).ok_or_else(|| not_found("extension", &id))?;
    let extension = Some(pb::Extension::clone(extension));
    answer(Response::GetExtension(pb::GetExtensionResponse { extension }))
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveExtensionRequest) -> Decided {
    let id = request.extension_id;
    let extension =
        desk.store.get::<pb::Extension>(&id).ok_or_else(|| not_found("extension", &id))?;
    let kind = store::Object::name(extension.as_ref());
    if desk.store.all::<pb::Resource>().any(|resource| resource.kind == kind) {
        return Err(precondition(format!("extension {kind} is in use by resources of its kind")));
    }
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Extension>(&id).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(|_| Ok(Response::RemoveExtension(pb::RemoveExtensionResponse {}))),
    )
}

pub fn create_resource(desk: &mut Desk<'_>, request: pb::CreateResourceRequest) -> Decided {
    if validate::name(request.annotations.as_ref()).is_empty() {
        return Err(invalid("Resource must have a name"));
    }
    if request.kind.is_empty() {
        return Err(invalid("Resource must belong to an Extension"));
    }
    if desk.store.by_name::<pb::Extension>(&request.kind).next().is_none() {
        return Err(invalid(format!("Extension {} does not exist.", request.kind)));
    }
    let id = desk.id();
    let resource = pb::Resource {
        id: id.clone(),
        annotations: request.annotations,
        kind: request.kind,
        payload: request.payload,
        ..Default::default()
    };
    let mut transaction = desk.transaction();
    transaction.create(resource).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let resource = Some(stored(store, &id)?);
            Ok(Response::CreateResource(pb::CreateResourceResponse { resource }))
        }),
    )
}

pub fn get_resource(desk: &Desk<'_>, request: pb::GetResourceRequest) -> Decided {
    let id = request.resource_id;
    let resource = desk.store.get::<pb::Resource>(&id).ok_or_else(|| not_found("resource", &id))?;
    let resource = Some(pb::Resource::clone(resource));
    answer(Response::GetResource(pb::GetResourceResponse { resource }))
}

pub fn update_resource(desk: &Desk<'_>, request: pb::UpdateResourceRequest) -> Decided {
    let id = request.resource_id;
    let version = request.resource_version.ok_or_else(lacking)?;
    let resource = desk.store.get::<pb::Resource>(&id).ok_or_else(|| not_found("resource", &id))?;
    let mut resource = pb::Resource::clone(resource);
    if let Some(annotations) = request.annotations {
        if validate::name(Some(&annotations)) != validate::name(resource.annotations.as_ref()) {
            return Err(invalid("Resource name cannot be changed"));
        }
        resource.annotations = Some(annotations);
    }
    resource.payload = request.payload.or(resource.payload);
    seen(&mut resource, &version);
    let mut transaction = desk.transaction();
    transaction.update(resource).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let resource = Some(stored(store, &id)?);
            Ok(Response::UpdateResource(pb::UpdateResourceResponse { resource }))
        }),
    )
}

pub fn remove_resource(desk: &Desk<'_>, request: pb::RemoveResourceRequest) -> Decided {
    let id = request.resource_id;
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Resource>(&id).map_err(|_| not_found("resource", &id))?;
    desk.write(
        transaction,
        Box::new(|_| Ok(Response::RemoveResource(pb::RemoveResourceResponse {}))),
    )
}

pub fn list_resources(desk: &Desk<'_>, request: pb::ListResourcesRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let resources = desk.store.all::<pb::Resource>().filter(|resource| {
        filter::common!(resource.as_ref(), &filters)
            && (filters.kind.is_empty() || filters.kind == resource.kind)
    });
    let resources = resources.map(|resource| pb::Resource::clone(resource)).collect();
    answer(Response::ListResources(pb::ListResourcesResponse { resources }))
}
