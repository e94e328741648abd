use crate::suite;

#[test]
fn reduce_matches_its_reference_in_every_variant() {
    suite::check_family("reduce");
}

#[test]
fn reduce_gradients_match_central_differences() {
    suite::check_gradients("reduce");
}
