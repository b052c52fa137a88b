//! Secrets: their data goes to the tasks that use them and never back to a user.

use wire::control::Response;
use wire::swarmkit as pb;

use super::{
    Decided, Desk, answer, filter, invalid, lacking, not_found, object_taken, seen, store_error,
    stored, validate,
};

/// Bytes of a secret.
const DATA_BYTES_MAX: usize = 500 * 1024;

pub fn get(desk: &Desk<'_>, request: pb::GetSecretRequest) -> Decided {
    if request.secret_id.is_empty() {
        return Err(invalid("secret ID must be provided"));
    }
    let secret = desk.store.get::<pb::Secret>(&request.secret_id);
    let secret = secret.ok_or_else(|| not_found("secret", &request.secret_id))?;
    let secret = Some(without_data(pb::Secret::clone(secret)));
    answer(Response::GetSecret(pb::GetSecretResponse { secret }))
}

pub fn list(desk: &Desk<'_>, request: pb::ListSecretsRequest) -> Decided {
    let filters = request.filters.unwrap_or_default();
    let secrets = desk.store.all::<pb::Secret>().filter(|s| filter::common!(s.as_ref(), &filters));
    let secrets = secrets.filter(|secret| !secret.internal);
    let secrets = secrets.map(|secret| without_data(pb::Secret::clone(secret))).collect();
    answer(Response::ListSecrets(pb::ListSecretsResponse { secrets }))
}

pub fn create(desk: &mut Desk<'_>, request: pb::CreateSecretRequest) -> Decided {
    let spec = request.spec.ok_or_else(lacking)?;
    validate::object_name(spec.annotations.as_ref())?;
    match &spec.driver {
        Some(driver) if driver.name.is_empty() => {
            return Err(invalid("secret driver must have a name"));
        }
        Some(_) => {}
        None if spec.data.is_empty() || spec.data.len() >= DATA_BYTES_MAX => {
            let bound =
                format!("secret data must be larger than 0 and less than {DATA_BYTES_MAX} bytes");
            return Err(invalid(bound));
        }
        None => {}
    }
    let name = validate::name(spec.annotations.as_ref()).to_owned();
    let id = desk.id();
    let mut transaction = desk.transaction();
    let secret = pb::Secret { id: id.clone(), spec: Some(spec), ..Default::default() };
    transaction.create(secret).map_err(object_taken("secret", &name))?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let secret = Some(without_data(stored(store, &id)?));
            Ok(Response::CreateSecret(pb::CreateSecretResponse { secret }))
        }),
    )
}

pub fn update(desk: &Desk<'_>, request: pb::UpdateSecretRequest) -> Decided {
    let id = request.secret_id;
    let version = request.secret_version.ok_or_else(lacking)?;
    let spec = request.spec.ok_or_else(lacking)?;
    let secret = desk.store.get::<pb::Secret>(&id).ok_or_else(|| not_found("secret", &id))?;
    let mut secret = pb::Secret::clone(secret);
    let held = secret.spec.get_or_insert_default();
    let same_data = spec.data.is_empty() || spec.data == held.data;
    let same_name =
        validate::name(spec.annotations.as_ref()) == validate::name(held.annotations.as_ref());
    if !same_name || !same_data || (spec.driver.is_some() && spec.driver != held.driver) {
        return Err(invalid("only updates to Labels are allowed"));
    }
    let labels = spec.annotations.unwrap_or_default().labels;
    held.annotations.get_or_insert_default().labels = labels;
    seen(&mut secret, &version);
    let mut transaction = desk.transaction();
    transaction.update(secret).map_err(store_error)?;
    desk.write(
        transaction,
        Box::new(move |store| {
            let secret = Some(without_data(stored(store, &id)?));
            Ok(Response::UpdateSecret(pb::UpdateSecretResponse { secret }))
        }),
    )
}

pub fn remove(desk: &Desk<'_>, request: pb::RemoveSecretRequest) -> Decided {
    let id = request.secret_id;
    if id.is_empty() {
        return Err(invalid("secret ID must be provided"));
    }
    let secret = desk.store.get::<pb::Secret>(&id).ok_or_else(|| not_found("secret", &id))?;
    let users: Vec<String> = desk
        .store
        .services_using_secret(&id)
        .map(|service| store::Object::name(service.as_ref()).to_owned())
        .collect();
    if !users.is_empty() {
        return Err(validate::in_use("secret", store::Object::name(secret.as_ref()), &users));
    }
    let mut transaction = desk.transaction();
    transaction.remove::<pb::Secret>(&id).map_err(store_error)?;
    desk.write(transaction, Box::new(|_| Ok(Response::RemoveSecret(pb::RemoveSecretResponse {}))))
}

fn without_data(mut secret: pb::Secret) -> pb::Secret {
    if let Some(spec) = &mut secret.spec {
        spec.data.clear();
    }
    secret
}
