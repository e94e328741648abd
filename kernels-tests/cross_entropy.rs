use crate::suite;

#[test]
fn cross_entropy_matches_its_reference_in_every_variant() {
    suite::check_family("cross_entropy");
}

#[test]
fn cross_entropy_gradients_match_central_differences() {
    suite::check_gradients("cross_entropy");
}
