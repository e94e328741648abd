use crate::suite;

#[test]
fn activation_matches_its_reference_in_every_variant() {
    suite::check_family("activation");
}

#[test]
fn activation_gradients_match_central_differences() {
    suite::check_gradients("activation");
}
