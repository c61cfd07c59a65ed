"""The subset by vLLM's names, for boards, gateways and autoscalers that know those. Source: vLLM 0.32's metrics page.

All have its labels `model_name` and `engine`; the cluster is one engine, number 0.
"""

from cluster.metrics.rows import counter, gauge, histogram

VLLM = (
    gauge("vllm:num_requests_running", "Requests in the batches that run.", unit="requests"),
    gauge("vllm:num_requests_waiting", "Requests that are open and in no batch.", unit="requests"),
    gauge("vllm:kv_cache_usage_perc", "Share of all nodes' blocks that are neither free nor cached.", unit="0 to 1"),
    gauge("vllm:cache_config_info", "Always 1; the pools' sizes stand in its labels.", "block_size", "num_gpu_blocks"),
    counter("vllm:prompt_tokens", "As penstock_prompt_tokens, all tenants.", unit="tokens"),
    counter("vllm:prompt_tokens_cached", "As penstock_cached_tokens, all tenants.", unit="tokens"),
    counter("vllm:generation_tokens", "As penstock_generation_tokens, all tenants.", unit="tokens"),
    counter("vllm:request_success", "Finished requests by why they did.", "finished_reason", unit="requests"),
    counter("vllm:num_preemptions", "Rows of all nodes that gave way.", unit="rows"),
    counter("vllm:prefix_cache_queries", "Prompt tokens that were looked for on nodes.", unit="tokens"),
    counter("vllm:prefix_cache_hits", "Of them, those that were found.", unit="tokens"),
    counter("vllm:spec_decode_num_draft_tokens", "Tokens that rows guessed.", unit="tokens"),
    counter("vllm:spec_decode_num_accepted_tokens", "Of them, those that the model confirmed.", unit="tokens"),
    histogram("vllm:time_to_first_token_seconds", "As penstock_ttft_seconds, all classes."),
    histogram("vllm:inter_token_latency_seconds", "As penstock_itl_seconds, all classes."),
    histogram("vllm:request_time_per_output_token_seconds", "As penstock_tpot_seconds, all classes."),
    histogram("vllm:e2e_request_latency_seconds", "As penstock_e2e_seconds, all classes."),
    histogram("vllm:request_queue_time_seconds", "Of finished requests: until their prefill began."),
    histogram("vllm:request_prefill_time_seconds", "Of finished requests: their prefill."),
    histogram("vllm:request_decode_time_seconds", "Of finished requests: from the prefill's end to the last token."),
    histogram("vllm:request_inference_time_seconds", "Of finished requests: prefill and all after it."),
    histogram("vllm:request_prompt_tokens", "Prompt tokens of finished requests.", unit="tokens"),
    histogram("vllm:request_generation_tokens", "Tokens of finished requests.", unit="tokens"),
)
