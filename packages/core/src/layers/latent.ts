import type { GlaConfig, MlaConfig } from '../model/config';
import { headMatmul } from '../ops/head-matmul';
import type { Tensor } from '../tensor';
import { type LayerContext, linears, norm, splitHeads } from './context';
import {
  constant,
  matrix,
  type ParameterSpec,
  type Weights,
} from './parameters';

type LatentConfig = MlaConfig | GlaConfig;

/** Names follow the matrices of maths.md §2: `W_DQ`, `W_UQ`, `W_QR`, ... */
export function latentParameters(
  config: LatentConfig,
  hidden: number,
  groups: number,
): ParameterSpec[] {
  const { heads, contentWidth, valueWidth, ropeWidth, latentWidth } = config;
  const query = config.queryLatentWidth;
  return [
    ...(query === undefined
      ? []
      : [
          matrix('q_down_proj.weight', query, hidden),
          constant('q_down_norm.weight', [query], 1),
        ]),
    matrix('q_up_proj.weight', heads * contentWidth, query ?? hidden),
    matrix('q_rope_proj.weight', heads * ropeWidth, query ?? hidden),
    matrix('kv_down_proj.weight', groups * latentWidth, hidden),
    constant('kv_down_norm.weight', [groups, latentWidth], 1),
    matrix('k_rope_proj.weight', ropeWidth, hidden),
    matrix('k_up_proj.weight', heads, contentWidth, latentWidth),
    matrix('v_up_proj.weight', heads, valueWidth, latentWidth),
    matrix('o_proj.weight', hidden, heads * valueWidth),
  ];
}

const ofQueries = ['q_up_proj.weight', 'q_rope_proj.weight'];

/** What a latent layer makes of its input `[N, hidden]`. */
export interface Latents {
  /** `[N, H, dh]` and, rotated, `[N, H, dR]`. */
  readonly qC: Tensor;
  readonly qR: Tensor;
  /** What is cached: normed latents `c [N, G, dg]`, rotated `kR [N, 1, dR]`. */
  readonly rows: { readonly c: Tensor; readonly kR: Tensor };
  /** Products of the input with further weights, by their names. */
  readonly product: Weights;
}

/**
 * Queries and rows of `h [N, hidden]`, all its products at once.
 * @param further weights that the input is multiplied with beside its own.
 */
export function latents(
  context: LayerContext,
  h: Tensor,
  weights: Weights,
  { contentWidth, ropeWidth, latentWidth, queryLatentWidth }: LatentConfig,
  further: readonly string[] = [],
): Latents {
  const hasQueryLatent = queryLatentWidth !== undefined;
  const product = linears(context, h, weights, [
    ...(hasQueryLatent ? ['q_down_proj.weight'] : ofQueries),
    'kv_down_proj.weight',
    'k_rope_proj.weight',
    ...further,
  ]);
  const normed = (name: string, x: Tensor) =>
    norm(context, x, weights(`${name}_norm.weight`));
  const query = hasQueryLatent
    ? linears(
        context,
        normed('q_down', product('q_down_proj.weight')),
        weights,
        ofQueries,
      )
    : product;
  const [qR, kR] = context.rotateMany([
    splitHeads(query('q_rope_proj.weight'), ropeWidth),
    splitHeads(product('k_rope_proj.weight'), ropeWidth),
  ]);
  const c = splitHeads(product('kv_down_proj.weight'), latentWidth);
  return {
    qC: splitHeads(query('q_up_proj.weight'), contentWidth),
    qR,
    rows: { c: normed('kv_down', c), kR },
    product,
  };
}

/** `1 / sqrt(dh + dR)`, in the absorbed form too. */
export function latentScale({ contentWidth, ropeWidth }: LatentConfig): number {
  return 1 / Math.sqrt(contentWidth + ropeWidth);
}

/**
 * How latent rows are read. Expanded: keys `W_UK,i c`, values `W_UV,i c` for
 * each head. Absorbed: queries `W_UK,i^T qC_i`, the latent is key and value,
 * and `W_UV,i` follows the sum. They are equal.
 */
export interface LatentReading {
  readonly q: Tensor;
  read(c: Tensor): { k: Tensor; v: Tensor };
  /** The output of attention as values `[N, H, dv]`. */
  values(o: Tensor): Tensor;
}

export function latentReading(
  { scope }: LayerContext,
  qC: Tensor,
  weights: Weights,
  form: 'expanded' | 'absorbed',
): LatentReading {
  const wUK = weights('k_up_proj.weight');
  const wUV = weights('v_up_proj.weight');
  if (form === 'expanded') {
    return {
      q: qC,
      read: (c) => ({
        k: scope.run(headMatmul, { x: c, w: wUK }, {}).y,
        v: scope.run(headMatmul, { x: c, w: wUV }, {}).y,
      }),
      values: (o) => o,
    };
  }
  return {
    q: scope.run(headMatmul, { x: qC, w: wUK }, { transposeWeight: true }).y,
    read: (c) => ({ k: c, v: c }),
    values: (o) => scope.run(headMatmul, { x: o, w: wUV }, {}).y,
  };
}
