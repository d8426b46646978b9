"""One of each file that people write, with every field that there is in it."""

POLICY = """\
tiers: [free, pro, enterprise]
providers:
  groq: {}
  openai: {promises: [no_training]}
  medcloud:
    region: us
    promises: [hipaa_baa, no_training, "region:us", "certification:soc2"]
models:
  small:
    provider: groq
    name: llama-3.1-8b-instant
    price: {input: 0.05, output: 0.08, request: 0.0001}
    tiers: [free, pro, enterprise]
    tokens: {context: 131_072, output: 32_768}
    capabilities: [json, tools]
    quality: 45
    speed: {ttft_ms: 180, tokens_per_s: 500}
  large:
    provider: openai
    price:
      input: 3.00
      cached_input: 0.30
      cache_write: 3.75
      cache_write_1h: 6
      image_input: 4
      audio_input: 5
      audio_output: 6
      reasoning: 15
      output: 15.00
      above:
        150_000:
          input: 6
          output: 22.50
          cached_input: 0.60
          cache_write: 7.50
          cache_write_1h: 12
          image_input: 8
          audio_input: 10
          audio_output: 12
          reasoning: 22.50
      per_call: {web_search: 0.01}
      factors:
        service_tier: {flex: 50%, priority: 200%}
        speed: {fast: 600%}
        inference_geo: {us: 110%}
    picture_tokens: openai-tiles
    part_tokens: {video_url: 60_000}
    hosted_tools: {web_search: {calls: 3, tokens: 8_000}}
    tiers: [pro, enterprise]
    tokens: {context: 200_000, output: 64_000}
    endpoints: [chat.completions, responses]
    region: eu
    promises: ["region:eu"]
  clinical:
    provider: medcloud
    price: {input: 1.20, output: 4.80}
    tiers: enterprise
    tokens: {context: 131_072, output: 16_384}
    private: true
groups:
  capable: [large, clinical]
data_classes:
  pii: [no_training]
  phi: [hipaa_baa, no_training]
routes:
  - name: sandbox
    when: {tenant: sandbox, region: [eu, us], endpoint: chat.completions, language: de}
    models: small
    enforce: true
  - name: night
    when:
      time_zone: Europe/Berlin
      weekday: mon-fri
      hour: 22-6
      hour_utc: 9-17
      share: {name: night, at_least: 10%, below: 60.5%}
      tier: [pro]
    models: small
  - name: hard
    when:
      input_tokens: {at_least: 10, below: 8_000}
      input_bytes: {below: 1_000_000}
      messages: {at_least: 2}
      complexity: {at_least: 500}
      keywords: {any: [prove, step by step], none: [draft]}
      patterns: ["\\\\bPO-[0-9]+"]
      needs: [tools, json]
      tags: {all: [a, b]}
      interactive: true
      task: [coding, review]
    models: capable
    fallback: small
    optimize: balanced
    weights: {cost: 40, latency: 30, quality: 30}
    min_quality: 10
    max_cost: 0.10
    max_ttft_ms: 2_000
    fallback_on: [timeout, rate_limited]
    timeout_ms: 60_000
    hedge: {after_ms: 900, max_extra_percent: 5}
    tiers:
      pro: {models: large, optimize: quality}
  - name: cheap-first
    when: {task: chat}
    models: [small, large]
    cascade: {signal: self_consistency, threshold: 700, samples: 4, stream_waits: false}
  - name: default
    models: [small, large]
    split:
      as-ever: {share: 90%}
      other: {share: 10%, models: large}
last_resort: [large, small]
endpoints:
  local: {url: "http://127.0.0.1:8080"}
  eu: {url: "https://eu.example/v", region: eu}
default_output_tokens: 400
semantic_model: words
invariants:
  - name: patient data stays under an agreement
    when: {data: phi, tier: pro}
    then: {promises: hipaa_baa}
  - name: free stays cheap
    when: {tier: free, data: {any: [pii], none: [phi]}}
    then: {max_cost: 0.50, for: {input_tokens: 4_000, output_tokens: 1_000}}
  - name: all of the rest
    when: {data: {all: [pii]}}
    then:
      models: capable
      providers: [openai, medcloud]
      regions: [eu, us]
      has_fallback: true
      never_refused: true
"""

TOP = """\
extends: base.yaml
providers: {openai: {region: eu}}
models:
  small: {quality: 60, price: {input: 0.20, output: 1.60}}
data_classes:
  phi: ["region:us"]
routes:
  - name: first
    when: {hour: 22-6, time_zone: Europe/Berlin}
    models: small
  - name: hard
    max_cost: 0.2
invariants:
  - name: another
    then: {has_fallback: true}
endpoints:
  local: {region: de}
"""

CASES = """\
cases:
  - name: everything said
    request:
      tier: pro
      tenant: acme
      region: eu
      caller: {iss: "https://issuer.example", sub: alice}
      models: [small, large]
      data: phi
      demand: {models: [small], provider: {only: [groq], data_collection: deny}}
      text: "What is 2 + 2?"
      messages: 3
      input_tokens: 20_000
      input_bytes: 80_000
      output_tokens: 300
      complexity: 400
      language: de
      needs: [tools]
      keywords: [prove]
      patterns: ["\\\\bPO-[0-9]+"]
      endpoint: chat.completions
      interactive: false
      task: coding
      tags: [a]
      at: 2027-01-31T12:00:00Z
      propose: small
      budget: 0.50
      out_of_service: large
    expect: {model: small, route: default/as-ever, verdict: accepted, reason: ok}
  - name: a conversation
    request:
      messages:
        - {role: system, content: Be brief.}
        - {role: user, content: hello}
    expect: {admissible: small, not_admissible: [large]}
"""

ISSUERS = """\
issuers:
  - iss: https://issuer.example
    max_lifetime_s: 3_600
    min_iat: 2027-01-31
    scope: waypost
    tenants: [acme]
    accounts: ["acme/*", trial]
    algorithms: [EdDSA, ES256, RS256]
    one_time: true
    dpop: required
    bearer_clients: [batch]
    keys:
      - kid: first
        alg: EdDSA
        x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
        status: retiring
        not_before: 2026-01-01
        expires_at: 2028-01-01T12:00:00Z
      - kid: second
        alg: ES256
        x: f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU
        y: x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0
      - kid: third
        alg: RS256
        n: RSA_MODULUS
        e: AQAB
  - iss: https://other.example
    jwks: keys/other.json
    accounts: [other]
revoked_tokens:
  - {iss: "https://issuer.example", jti: 0123456789abcdef}
subjects:
  - {iss: "https://issuer.example", sub: alice, min_iat: 2027-01-31T12:00:00Z, min_epoch: 4}
tenants:
  - {iss: "https://other.example", tenant: acme, min_iat: 2027-01-31}
"""

VALIDATOR = """\
audience: https://llm.example
channel: prod
manifest:
  url: https://edge.example/v1/prod/bundle.json
  projection: full
  access_token: EDGE_TOKEN
  root: root.json
  cache: state/manifest.json
  refresh_s: 30
  grace_s: 3_600
  admin: true
providers:
  groq: {base_url: "https://api.groq.example/openai/v1", api_key: GROQ_API_KEY, simulated: true}
  openai:
    base_url: https://api.openai.example/v1
    api_keys: [FIRST_KEY, SECOND_KEY]
    dialect: openai
    apis: [chat.completions, responses]
    sampling: false
    max_tokens_field: max_completion_tokens
    timeout_s: 30.5
    connect_timeout_s: 2
    retries: 2
    retry_percent: 12.5
    max_concurrency: 512
    breaker:
      failures: 4
      window_s: 20
      min_calls: 10
      failed_percent: 40
      slow_percent: 70
      slow_after_s: 12
      first_rest_s: 3
      last_rest_s: 200
    charge_unanswered: prompt
  tunnelled:
    base_url: https://api.tunnelled.example/v1
    proxy: http://proxy.example:3128
    proxy_auth: PROXY_LOGIN
    ca_file: ca.pem
    client_cert: client.pem
    client_key: client.key
    http2: true
  anthropic: {base_url: "https://api.anthropic.example/v1", dialect: anthropic, betas: [files-api]}
ledger:
  store: redis
  path: state/ledger.sqlite
  durability: full
  dsn: LEDGER_DSN
  prefix: waypost
  patience_s: 1.5
  leased: true
  lease_s: 20
  lease_percent: 7.5
  when_down: spend_leases
  on_loss: rebuild
records:
  store: postgres
  path: state/records.sqlite
  dsn: RECORDS_DSN
  retain_days: 30
  totals_days: 400
  spill: state/spill
  spill_mib: 256
  prompts: true
cors: {origins: ["https://app.example"], max_age_s: 300}
metrics: {enabled: true, token: METRICS_TOKEN, path: state/metrics}
tracing: {endpoint: "http://collector:4318/v1/traces", share: 0.2, headers: {x-key: TRACES_KEY}}
receipts: {origin: validator.example/log, key: state/receipts.key, log: state/log, header: false}
candidate:
  channel: next
  url: https://edge.example/v1/next/bundle.json
  cache: state/candidate.json
  state: state/canary.json
  shadow_share: 0.5
  send:
    share: 0.05
    budget: [{window: day, limit_usd: 2.50}]
    at_once: 2
    timeout_s: 20
  canary: {share: 0.1, min_requests: 300, max_failed: 0.01, max_refused: 0.01, max_bad: 0.1, max_cost: 0.3}
budgets:
  default:
    - {window: day, limit_usd: 5, warn_usd: "4.50"}
    - {window: minute, limit_requests: 60, limit_tokens: 100_000}
  accounts:
    acme: [{window: month, limit_usd: 500}]
  users: {"*": [{window: day, limit_usd: 1}]}
  tenants: {acme: [{window: total, limit_usd: 10_000}]}
  tiers: {free: [{window: request, limit_usd: 0.05}]}
  providers: {groq: [{window: week, limit_usd: 100}]}
  models: {large: [{window: hour, limit_usd: 100}]}
  overall: [{window: day, limit_usd: 1_000}]
  unlimited: false
  time_zone: Europe/Berlin
  webhook: BUDGET_WEBHOOK
pseudonym: {path: state/pseudonym.key}
limits: {body_bytes: 4_194_304, body_timeout_s: 20}
console: {token: CONSOLE_TOKEN}
report: {against: large}
tell_cost: {header: true, usage: true}
dpop: {origins: ["https://llm.example"], nonce: required, max_age_s: 30}
replay: {store: redis, path: state/replay.sqlite, dsn: REPLAY_DSN, prefix: waypost}
peers: {dsn: PEERS_DSN, prefix: waypost}
detectors: {card: pii, email: pii}
"""

UTTERANCES = """\
tiers: [free]
providers: {groq: {}}
models:
  small:
    provider: groq
    price: {input: 0.05, output: 0.08}
    tiers: [free]
    tokens: {context: 8_000, output: 1_000}
complexity_model: complexity.json
judge_model: judge.json
routes:
  - name: refunds
    utterances: [give me my money back, refund please, I want a refund, return it, pay me back]
    models: small
  - name: opening
    utterances: [when do you open, opening hours, are you open, closing time, open on sundays]
    models: small
  - name: both
    when: {semantic: refunds}
    models: small
  - name: default
    models: small
"""
