import { Sequences, type Tensor } from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { KernelContext } from '../../../packages/backend-gpu/src/webgpu/kernels';
import { attentionKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/attention';
import { compressedAttentionKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/compressed-attention';
import { selectedAttentionKernels } from '../../../packages/backend-gpu/src/webgpu/kernels/selected-attention';
import { wgslOf } from '../../../packages/backend-gpu/src/webgpu/launch';
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
const sharings = [1, 2, 4];

type Enqueue = (context: KernelContext, profile: Profile) => void;

/** Both passes of each operator, by name. */
const passes: Readonly<Record<string, Enqueue>> = {
  attention: (context, profile) =>
    attentionKernels(context).attention(...windowed(profile)),
  attentionBackward: (context, profile) => {
    const [operands, , attributes] = windowed(profile);
    attentionKernels(context).attentionBackward(
      { ...operands, ...resultsOf(profile) },
      gradientsOf(operands),
      attributes,
    );
  },
  compressed: (context, profile) =>
    compressedAttentionKernels(context).compressedAttention(
      ...compressed(profile),
    ),
  compressedBackward: (context, profile) => {
    const [operands, , attributes] = compressed(profile);
    compressedAttentionKernels(context).compressedAttentionBackward(
      { ...operands, ...resultsOf(profile) },
      gradientsOf(operands),
      attributes,
    );
  },
  ...byName('selected', (sharing) => (context, profile) => {
    selectedAttentionKernels(context).selectedAttention(
      ...selected(profile, sharing),
    );
  }),
  ...byName('selectedBackward', (sharing) => (context, profile) => {
    const [operands, , attributes] = selected(profile, sharing);
    selectedAttentionKernels(context).selectedAttentionBackward(
      { ...operands, ...resultsOf(profile) },
      gradientsOf(operands),
      attributes,
    );
  }),
};

function byName(name: string, pass: (sharing: number) => Enqueue) {
  return Object.fromEntries(
    sharings.map((sharing) => [`${name} ${sharing}`, pass(sharing)]),
  );
}

function windowed(profile: Profile) {
  const sequences = Sequences.uniform(1, tokens);
  const attributes = { sequences, scale, window: 100 };
  return [operandsOf(profile), resultsOf(profile), attributes] as const;
}

function compressed(profile: Profile) {
  const blocking = { length: block, stride: block };
  const sequences = Sequences.uniform(1, tokens, tokens, {
    ...blocking,
    sharing: 1,
  });
  const attributes = { sequences, scale, ...blocking };
  return [operandsOf(profile), resultsOf(profile), attributes] as const;
}

function selected(profile: Profile, sharing: number) {
  const sequences = Sequences.uniform(1, tokens, tokens, {
    length: block,
    stride: block,
    sharing,
  });
  const indices = nullTensor([tokens / sharing, profile[1], 4], 'i32');
  const attributes = { sequences, scale, blockSize: block, sharing };
  const operands = { ...operandsOf(profile), indices };
  return [operands, resultsOf(profile), attributes] as const;
}

function resultsOf([heads, , width, , values]: Profile) {
  const shape = [tokens, heads, values > 0 ? values : width];
  return {
    o: nullTensor(shape),
    dO: nullTensor(shape),
    lse: nullTensor([tokens, heads], 'f32'),
  };
}

function gradientsOf(operands: ReturnType<typeof operandsOf>) {
  const like = (tensor: Tensor) => nullTensor(tensor.shape);
  const { q, k, v, qRope, kRope } = operands;
  return {
    dQ: like(q),
    dK: like(k),
    dV: like(v),
    ...(qRope && { dQRope: like(qRope) }),
    ...(kRope && { dKRope: like(kRope) }),
  };
}

const cases = Object.keys(profiles).flatMap((profile) =>
  Object.keys(passes).map(
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
      passes[name]?.(context, profiles[profile]),
    );
    const names = launches.map(({ kernel }) => kernel);
    const units = names.filter((kernel) => kernel.endsWith('Unit'));
    expect(units).toHaveLength(name.includes('Backward') ? 2 : 1);
    for (const launch of launches) {
      expect(await flawsOf(device, launch)).toEqual([]);
    }
  });

  // What the compiler does not see: matrices behind other variables would lie
  // where NVIDIA's units cannot load them.
  test.each(cases)(
    '%s, %s: all workgroup memory comes in 16 bytes',
    (name, profile) => {
      const launches = launchesOf((context) =>
        passes[name]?.(context, profiles[profile]),
      );
      const units = launches.filter(({ kernel }) => kernel.endsWith('Unit'));
      for (const launch of units) {
        const sizes = workgroupBytes(wgslOf(launch));
        expect(sizes).toHaveProperty('factors');
        const all = Object.values(sizes);
        for (const bytes of all) expect(bytes % 16).toBe(0);
        const total = all.reduce((sum, bytes) => sum + bytes);
        expect(total).toBeLessThanOrEqual(49_152);
      }
    },
  );
});

/** Bytes of each variable of a workgroup, by name. */
function workgroupBytes(code: string): Record<string, number> {
  const constants = new Map(
    [...code.matchAll(/const (\w+) = (\d+)u?;/g)].map(([, name, value]) => [
      name,
      Number(value),
    ]),
  );
  const extentOf = (text: string) =>
    text
      .split('*')
      .map(
        (factor) => constants.get(factor.trim()) ?? Number.parseInt(factor, 10),
      )
      .reduce((product, factor) => product * factor);
  const variables = code.matchAll(/var<workgroup> (\w+): (.*);/g);
  return Object.fromEntries(
    [...variables].map(([, name, type = '']) => {
      const [, element = type, extent = '1'] =
        type.match(/^array<(.*), (.*)>$/) ?? [];
      const each = element === 'f16' ? 2 : 4;
      return [name, each * extentOf(extent)];
    }),
  );
}
