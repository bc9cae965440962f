/** Sizes of the cases that belong to no model. */
export interface BenchProfile {
  readonly heads: number;
  /** Latent groups, and K/V heads of layers without latents. */
  readonly groups: number;
  /** `dg`: a latent row is key and value; also the width of plain heads. */
  readonly width: number;
  /** `dR` */
  readonly ropeWidth: number;
  /** `l = d = l'` */
  readonly block: number;
  /** `n` */
  readonly count: number;
  /** `r`, one case each. */
  readonly sharing: readonly number[];
  readonly window: number;
  /** Width of a layer's input. */
  readonly hidden: number;
  /** Sides of square matrix products; the last one is the peak's. */
  readonly matrices: readonly number[];
  /** Bytes of the copy that gives the bandwidth. */
  readonly copyBytes: number;
  /** Tokens of the attention cases. */
  readonly contexts: readonly number[];
  /** Tokens that the decoding case generates. */
  readonly generate: number;
  /** Tokens of a training step. */
  readonly stepTokens: number;
}

export type ProfileName = 'large' | 'small';

/** `large` fills a GPU; `small` is for CPUs and adapters in software. */
export const profiles: Readonly<Record<ProfileName, BenchProfile>> = {
  large: {
    heads: 64,
    groups: 4,
    width: 128,
    ropeWidth: 64,
    block: 16,
    count: 64,
    sharing: [4, 1],
    window: 512,
    hidden: 1024,
    matrices: [1024, 2048, 4096],
    copyBytes: 2 ** 28,
    contexts: [2048, 8192],
    generate: 128,
    stepTokens: 16_384,
  },
  small: {
    heads: 8,
    groups: 2,
    width: 16,
    ropeWidth: 8,
    block: 8,
    count: 8,
    sharing: [4, 1],
    window: 32,
    hidden: 64,
    matrices: [64, 256],
    copyBytes: 2 ** 24,
    contexts: [256],
    generate: 16,
    stepTokens: 256,
  },
};
