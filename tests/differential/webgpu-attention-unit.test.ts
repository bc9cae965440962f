import { openCpu } from '@asa/backend-cpu';
import { openWebGpu, type WebGpuBackend } from '@asa/backend-gpu';
import { type Backend, type OperatorName, Random, Sequences } from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { judgeCall } from '../../packages/core/src/verify/differential';
import {
  referenceOn,
  type ValuesByName,
} from '../../packages/core/src/verify/run-operator';
import { type Values, valuesOf } from '../../packages/core/src/verify/values';
import {
  softwareGpu,
  softwareTypes,
  whyNoSoftwareGpu,
} from '../unit/backend-gpu/software-gpu';

/** The type that units multiply, where the adapter has it. */
const dtype = softwareTypes.at(-1) ?? 'f32';

const reason = whyNoSoftwareGpu();

/** Plain code stands in the units' place: all else is the units' kernels. */
describe.skipIf(reason)(`Attention by matrix units ${reason ?? ''}`, () => {
  let backend: WebGpuBackend;
  let reference: Backend;

  beforeAll(async () => {
    backend = await openWebGpu({
      gpu: softwareGpu(),
      attention: 'emulated',
      poison: true,
    });
    reference = await openCpu({ poison: true });
  }, 60_000);

  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  test.for(tried)(
    'computes %s while scores and gradients grow',
    { timeout: 300_000 },
    async (name, { skip }) => {
      const lacks = dtype === 'f16' && !backend.features.has('shader-f16');
      skip(lacks, 'the adapter lacks shader-f16');
      expect(backend.attentionPath).toBe('emulated');
      const { operator, inputs, dO, attributes } = growing(forms[name]);
      const trial = { backend, reference };
      const judge = async (name: OperatorName, values: ValuesByName) => {
        const call = { operator: name, attributes };
        const judgement = await judgeCall(trial, call, values, dtype);
        expect(judgement).toMatchObject({ percent: expect.any(Number) });
        expect(judgement).not.toHaveProperty('detail');
      };
      await judge(operator, inputs);
      const oracle = referenceOn(reference);
      const { o, lse } = await oracle(operator, inputs, attributes);
      const rounded = (
        values: Values | undefined,
        role: 'data' | 'statistic',
      ) =>
        valuesOf(
          values?.shape ?? [],
          Float64Array.from(values?.data ?? []),
          dtype,
          role,
        );
      await judge(`${operator}Backward`, {
        ...inputs,
        o: rounded(o, 'data'),
        lse: rounded(lse, 'statistic'),
        dO,
      });
    },
  );
});

interface Form {
  readonly heads: number;
  readonly groups: number;
  readonly width: number;
  readonly rope: number;
  /** Of values; 0 where they are the keys. */
  readonly valueWidth: number;
  /** Queries of a list. */
  readonly sharing?: number;
}

/** Tiles of 64, 32 and 16 rows; several of keys. */
const forms = {
  latent: { heads: 8, groups: 2, width: 24, rope: 8, valueWidth: 0 },
  expanded: { heads: 2, groups: 2, width: 16, rope: 0, valueWidth: 40 },
  'lists of 16 rows': {
    ...{ heads: 8, groups: 2, width: 32, rope: 16, valueWidth: 0 },
    sharing: 4,
  },
  'lists of 32 rows': {
    ...{ heads: 16, groups: 1, width: 16, rope: 0, valueWidth: 0 },
    sharing: 2,
  },
} as const satisfies Readonly<Record<string, Form>>;

/** Compiling takes an adapter in software most of a minute. */
const tried: readonly (keyof typeof forms)[] =
  dtype === 'f16' ? ['lists of 16 rows'] : ['expanded'];

/** Later keys have far larger scores: references are set anew on the way. */
function growing(form: Form) {
  const { heads, groups, width, rope, valueWidth, sharing = 1 } = form;
  const tokens = 150;
  const block = 8;
  const random = Random.fromSeed(5);
  const draw = (shape: readonly number[], grow = 0, mean = 0) => {
    const size = shape.reduce((n, extent) => n * extent, 1);
    const row = size / tokens;
    const data = Float64Array.from(
      { length: size },
      (_, i) =>
        mean + random.normal() / 4 + (grow * Math.floor(i / row)) / tokens,
    );
    return valuesOf(shape, data, dtype);
  };
  const k = draw([tokens, groups, width], 1);
  const inputs = {
    q: draw([tokens, heads, width], 0, 1),
    k,
    v: valueWidth > 0 ? draw([tokens, groups, valueWidth]) : k,
    ...(rope > 0 && {
      qRope: draw([tokens, heads, rope]),
      kRope: draw([tokens, 1, rope]),
    }),
  };
  const scale = 12 / width;
  // So have later rows: gradients are a thousand times those of the first.
  const columns = valueWidth > 0 ? valueWidth : width;
  const small = draw([tokens, heads, columns]);
  const rising = Float64Array.from(small.data, (x, i) => {
    const t = Math.floor(i / (heads * columns));
    return x * 2 ** ((10 * t) / tokens - 10);
  });
  const dO = valuesOf(small.shape, rising, dtype);
  if (form.sharing === undefined) {
    const sequences = Sequences.uniform(1, tokens);
    const attributes = { sequences, scale };
    return { operator: 'attention' as const, inputs, dO, attributes };
  }
  const blocking = { length: block, stride: block, sharing };
  const sequences = Sequences.uniform(1, tokens, tokens, blocking);
  const leaders = Math.ceil(tokens / sharing);
  const count = 12;
  // The last blocks in order, none where there are fewer.
  const lists = Array.from({ length: leaders * groups * count }, (_, i) => {
    const leader = Math.floor(i / (groups * count));
    const own = Math.floor((leader * sharing) / block) + 1;
    const j = Math.max(0, own - count) + (i % count);
    return j < own ? j : -1;
  });
  const indices = {
    shape: [leaders, groups, count],
    dtype: 'i32' as const,
    data: Int32Array.from(lists),
  };
  const attributes = { sequences, scale, blockSize: block, sharing };
  return {
    operator: 'selectedAttention' as const,
    inputs: { ...inputs, indices },
    dO,
    attributes,
  };
}
