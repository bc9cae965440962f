import { Sequences } from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { KernelContext } from '../../../packages/backend-gpu/src/webgpu/kernels';
import { attentionKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/attention';
import { compressedAttentionKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/compressed-attention';
import { selectedAttentionKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/selected-attention';
import { flawsOf, launchesOf, nullTensor, openNullDevice } from './null-device';

const tokens = 256;
const block = 16;

/** Heads, key heads, widths of keys, of rotary keys and of values. */
const profiles = {
  latent: [64, 4, 128, 64, 0],
  small: [8, 2, 64, 32, 0],
  expanded: [16, 16, 128, 64, 128],
  plain: [32, 8, 128, 0, 128],
  odd: [6, 2, 17, 0, 5],
} as const;

type Profile = (typeof profiles)[keyof typeof profiles];

function operandsOf([heads, groups, width, rope, values]: Profile) {
  const k = nullTensor([tokens, groups, width]);
  return {
    q: nullTensor([tokens, heads, width]),
    k,
    v: values > 0 ? nullTensor([tokens, groups, values]) : k,
    ...(rope > 0 && {
      qRope: nullTensor([tokens, heads, rope]),
      kRope: nullTensor([tokens, 1, rope]),
    }),
  };
}

const scale = 0.1;

const forward: Readonly<
  Record<string, (context: KernelContext, profile: Profile) => void>
> = {
  attention: (context, profile) => {
    const sequences = Sequences.uniform(1, tokens);
    const attributes = { sequences, scale, window: 100 };
    const kernels = attentionKernels(context);
    kernels.attention(operandsOf(profile), resultsOf(profile), attributes);
  },
  compressedAttention: (context, profile) => {
    const blocking = { length: block, stride: block };
    const sequences = Sequences.uniform(1, tokens, tokens, {
      ...blocking,
      sharing: 1,
    });
    const attributes = { sequences, scale, ...blocking };
    const kernels = compressedAttentionKernels(context);
    kernels.compressedAttention(
      operandsOf(profile),
      resultsOf(profile),
      attributes,
    );
  },
  ...Object.fromEntries(
    [1, 2, 4].map((sharing) => [`selected${sharing}`, selected(sharing)]),
  ),
};

function selected(sharing: number) {
  return (context: KernelContext, profile: Profile) => {
    const sequences = Sequences.uniform(1, tokens, tokens, {
      length: block,
      stride: block,
      sharing,
    });
    const indices = nullTensor([tokens / sharing, profile[1], 4], 'i32');
    const kernels = selectedAttentionKernels(context);
    kernels.selectedAttention(
      { ...operandsOf(profile), indices },
      resultsOf(profile),
      { sequences, scale, blockSize: block, sharing },
    );
  };
}

function resultsOf([heads, , width, , values]: Profile) {
  return {
    o: nullTensor([tokens, heads, values > 0 ? values : width]),
    lse: nullTensor([tokens, heads], 'f32'),
  };
}

const cases = Object.keys(profiles).flatMap((profile) =>
  Object.keys(forward).map(
    (name) => [name, profile as keyof typeof profiles] as const,
  ),
);

/** Software adapters have no such units: there, only the text can be tried. */
describe('attention by matrix units', () => {
  let device: GPUDevice;
  beforeAll(async () => {
    device = await openNullDevice();
  });
  afterAll(() => device.destroy());

  test.each(cases)('%s, %s: the WGSL is valid', async (name, profile) => {
    const launches = launchesOf((context) =>
      forward[name]?.(context, profiles[profile]),
    );
    expect(launches.map(({ kernel }) => kernel)).toEqual([
      expect.stringMatching(/ForwardUnit$/),
    ]);
    for (const launch of launches) {
      expect(await flawsOf(device, launch)).toEqual([]);
    }
  });
});
