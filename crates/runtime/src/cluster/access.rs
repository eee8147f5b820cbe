//! SubjectAccessReviews: whether the API server's authorizers allow a user to do something
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access>).

use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

/// A review of this user. The caller sets the attributes.
pub fn about(user: UserInfo) -> SubjectAccessReviewSpec {
    let UserInfo { username, uid, groups, extra } = user;
    SubjectAccessReviewSpec { user: username, uid, groups, extra, ..Default::default() }
}

/// Sends a review. If the authorizers have no opinion, the response is neither allowed nor denied, which is not allowed.
pub async fn is_allowed(client: &Client, spec: SubjectAccessReviewSpec) -> kube::Result<bool> {
    let review = SubjectAccessReview { spec, ..Default::default() };
    let review = Api::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(review.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
}
