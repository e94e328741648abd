use crate::suite;

#[test]
fn layer_norm_matches_its_reference_in_every_variant() {
    suite::check_family("layer_norm");
}

#[test]
fn layer_norm_gradients_match_central_differences() {
    suite::check_gradients("layer_norm");
}
