use crate::suite;

#[test]
fn gemm_matches_its_reference_in_every_variant() {
    suite::check_family("gemm");
}

#[test]
fn gemm_gradients_match_central_differences() {
    suite::check_gradients("gemm");
}
