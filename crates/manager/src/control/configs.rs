//! Configs: as secrets, but readable.

use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, invalid, lacking, not_found, object_taken, seen, store_error,
    stored, validate,
};

/// Bytes of a config.
const DATA_BYTES_MAX: usize = 1000 * 1024;

pub fn get(desk: &Desk<'_>, request: pb::GetConfigRequest) -> Decided {
    if request.config_id.is_empty() {
        return Err(invalid("config ID must be provided"));
    }
    let config = desk.store.get::<pb::Config>(&request.config_id);
    let config = config.ok_or_else(|| not_found("config", &request.config_id))?;
    let config = Some(pb::Config::clone(config));
    answer(Response::GetConfig(pb::GetConfigResponse { config }))
}

pub fn list(desk: &Desk<'_>, request: pb::ListConfigsRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let configs = desk.store.all::<pb::Config>().filter(|c| filter::common!(c.as_ref(), &filters));
    let configs = configs.map(|config| pb::Config::clone(config)).collect();
    answer(Response::ListConfigs(pb::ListConfigsResponse { configs }))
}

pub fn create(desk: &mut Desk<'_>, request: pb::CreateConfigRequest) -> Decided {
    let spec = request.spec.ok_or_else(lacking)?;
    validate::object_name(spec.annotations.as_ref())?;
    if spec.data.is_empty() || spec.data.len() >= DATA_BYTES_MAX {
        let bound =
            format!("config data must be larger than 0 and less than {DATA_BYTES_MAX} bytes");
        return Err(invalid(bound));
    }
    let name = validate::name(spec.annotations.as_ref()).to_owned();
    let id = desk.id();
    let mut transaction = desk.transaction();
    let config = pb::Config { id: id.clone(), spec: Some(spec), ..Default::default() };
    transaction.create(config).map_err(object_taken("config", &name))?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let config = Some(stored(store, &id)?);
            Ok(Response::CreateConfig(pb::CreateConfigResponse { config }))
        }),
    )
}

pub fn update(desk: &Desk<'_>, request: pb::UpdateConfigRequest) -> Decided {
    let id = request.config_id;
    let version = request.config_version.ok_or_else(lacking)?;
    let spec = request.spec.ok_or_else(lacking)?;
    let config = desk.store.get::<pb::Config>(&id).ok_or_else(|| not_found("config", &id))?;
    let mut config = pb::Config::clone(config);
    let held = config.spec.get_or_insert_default();
    let same_data = spec.data.is_empty() || spec.data == held.data;
    let same_name =
        validate::name(spec.annotations.as_ref()) == validate::name(held.annotations.as_ref());
    if !same_name || !same_data {
        return Err(invalid("only updates to Labels are allowed"));
    }
    let labels = spec.annotations.unwrap_or_default().labels;
    held.annotations.get_or_insert_default().labels = labels;
    seen(&mut config, &version);
    let mut transaction = desk.transaction();
    transaction.update(config).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let config = Some(stored(store, &id)?);
            Ok(Response::UpdateConfig(pb::UpdateConfigResponse { config }))
        }),
    )
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveConfigRequest) -> Decided {
    let id = request.config_id;
    if id.is_empty() {
        return Err(invalid("config ID must be provided"));
    }
    let config = desk.store.get::<pb::Config>(&id).ok_or_else(|| not_found("config", &id))?;
    let users: Vec<String> = desk
        .store
        .services_using_config(&id)
        .map(|service| store::Object::name(service.as_ref()).to_owned())
        .collect();
    if !users.is_empty() {
        return Err(validate::in_use("config", store::Object::name(config.as_ref()), &users));
    }
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Config>(&id).map_err(store_error)?;
    desk.write(transaction, Box::new(|_| Ok(Response::RemoveConfig(pb::RemoveConfigResponse {}))))
}
