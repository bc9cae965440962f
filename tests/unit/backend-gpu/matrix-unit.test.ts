import { openWebGpu } from '@asa/backend-gpu';
import { UnsupportedError } from '@asa/core';
import { describe, expect, test } from 'vitest';
import { matrixUnitOf } from '../../../packages/backend-gpu/src/webgpu/matrix-unit';
import { softwareGpu, whyNoSoftwareGpu } from './software-gpu';

const config = (
  componentType: string,
  resultComponentType: string,
  M: number,
  N: number,
  K: number,
) => ({ componentType, resultComponentType, M, N, K });

const features = [
  'chromium-experimental-subgroup-matrix',
  'subgroups',
  'shader-f16',
];

function adapter(
  info: Readonly<Record<string, unknown>> = {},
  has: readonly string[] = features,
  workgroupBytes = 49_152,
) {
  return {
    features: new Set(has),
    limits: {
      maxComputeWorkgroupStorageSize: workgroupBytes,
      maxComputeInvocationsPerWorkgroup: 256,
    },
    info: {
      subgroupMinSize: 32,
      subgroupMaxSize: 32,
      subgroupMatrixConfigs: [
        config('f16', 'f16', 16, 16, 16),
        config('f16', 'f32', 16, 8, 8),
      ],
      ...info,
    },
  } as unknown as GPUAdapter;
}

const language = new Set(['subgroup_id']);

describe('the unit that multiplies matrices', () => {
  test('is the first that sums f16 in f32', () => {
    const unit = { m: 16, n: 8, k: 8, subgroupSize: 32 };
    const workgroupBytes = 49_152;
    expect(matrixUnitOf(adapter(), language)).toEqual({
      ...unit,
      workgroupBytes,
    });
  });

  test.each(features)('needs the feature %s', (name) => {
    const rest = features.filter((feature) => feature !== name);
    expect(matrixUnitOf(adapter({}, rest), language)).toContain(name);
  });

  test('needs subgroups that know their number', () => {
    expect(matrixUnitOf(adapter(), new Set())).toContain('subgroup_id');
  });

  test('needs subgroups of one size', () => {
    const found = matrixUnitOf(adapter({ subgroupMinSize: 8 }), language);
    expect(found).toBe('subgroups have 8 to 32 threads');
  });

  test('needs workgroups that hold its tiles', () => {
    const few = adapter({}, features, 32_768);
    expect(matrixUnitOf(few, language)).toMatch(/32768 bytes/);
    const wide = adapter({ subgroupMinSize: 64, subgroupMaxSize: 64 });
    expect(matrixUnitOf(wide, language)).toMatch(/256 threads/);
  });

  test('needs a configuration that fits the tiles', () => {
    const subgroupMatrixConfigs = [
      config('f32', 'f32', 8, 8, 8),
      config('f16', 'f32', 32, 32, 16),
    ];
    const found = matrixUnitOf(adapter({ subgroupMatrixConfigs }), language);
    expect(found).toMatch(/no configuration/);
  });
});

const reason = whyNoSoftwareGpu();

describe.skipIf(reason)(`matrices in software ${reason ?? ''}`, () => {
  test('are plain, and units are refused', async () => {
    const gpu = softwareGpu();
    const backend = await openWebGpu({ gpu });
    expect(backend.matrixPath).toBe('plain');
    expect(backend.attentionPath).toBe('plain');
    await backend.destroy();
    const open = openWebGpu({ gpu, matrices: 'subgroup' });
    await expect(open).rejects.toThrow(UnsupportedError);
    const attend = openWebGpu({ gpu, attention: 'subgroup' });
    await expect(attend).rejects.toThrow(UnsupportedError);
  }, 30_000);

  test('are emulated for attention where that is asked for', async () => {
    const gpu = softwareGpu();
    const backend = await openWebGpu({ gpu, attention: 'emulated' });
    expect(backend.matrixPath).toBe('plain');
    expect(backend.attentionPath).toBe('emulated');
    await backend.destroy();
  }, 30_000);
});
