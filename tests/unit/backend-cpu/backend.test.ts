import { openCpu } from '@asa/backend-cpu';
import {
  ArgumentError,
  type DType,
  DTypeError,
  OutOfMemoryError,
  operators,
  Scope,
  TensorStateError,
} from '@asa/core';
import { describe, expect, it } from 'vitest';

describe('memory', () => {
  it('counts bytes in use, their peak and the allocations', async () => {
    const cpu = await openCpu();
    const a = cpu.allocate(10, 'f64');
    const b = cpu.allocate(3, 'bf16');
    cpu.free(a);
    cpu.free(a);
    expect(cpu.memory()).toEqual({
      bytesInUse: 6,
      peakBytes: 86,
      allocations: 2,
    });
    cpu.free(b);
    expect(cpu.memory()).toEqual({
      bytesInUse: 0,
      peakBytes: 86,
      allocations: 2,
    });
  });

  it('allocates nothing', async () => {
    const cpu = await openCpu();
    expect(await cpu.read(cpu.allocate(0, 'f32'))).toEqual(new Float32Array(0));
    expect(cpu.memory().bytesInUse).toBe(0);
  });

  it.each<[DType, number]>([
    ['f64', Number.NaN],
    ['f32', Number.NaN],
    ['f16', 0x7fff],
    ['bf16', 0x7fff],
    ['i32', -(2 ** 31)],
  ])('poisons %s', async (dtype, value) => {
    const cpu = await openCpu({ poison: true });
    const data = await cpu.read(cpu.allocate(3, dtype));
    expect(Array.from(data)).toEqual([value, value, value]);
  });

  it('refuses more than the limit and says what was asked', async () => {
    const cpu = await openCpu({ limitBytes: 100 });
    const first = cpu.allocate(15, 'f32');
    try {
      cpu.allocate(11, 'f32');
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(OutOfMemoryError);
      expect(error).toMatchObject({ asked: 44, inUse: 60 });
    }
    cpu.free(first);
    cpu.allocate(25, 'f32');
  });

  it('turns the refusal of the host into an OutOfMemoryError', async () => {
    const cpu = await openCpu();
    expect(() => cpu.allocate(2 ** 50, 'f32')).toThrow(OutOfMemoryError);
    expect(cpu.memory().bytesInUse).toBe(0);
  });

  it.each([-1, Number.NaN])('refuses a limit of %s', async (limitBytes) => {
    await expect(openCpu({ limitBytes })).rejects.toThrow(ArgumentError);
  });
});

describe('transfers', () => {
  it('writes at an offset, and reads a copy', async () => {
    const cpu = await openCpu();
    const storage = cpu.allocate(4, 'i32');
    cpu.write(storage, Int32Array.of(1, 2, 3, 4));
    cpu.write(storage, Int32Array.of(7, 8), 2);
    const before = await cpu.read(storage);
    cpu.write(storage, Int32Array.of(9));
    expect(before).toEqual(Int32Array.of(1, 2, 7, 8));
  });

  it('copies within one storage where the parts overlap', async () => {
    const cpu = await openCpu();
    const storage = cpu.allocate(5, 'f32');
    cpu.write(storage, Float32Array.of(1, 2, 3, 4, 5));
    cpu.copy(storage, 0, storage, 1, 4);
    expect(await cpu.read(storage)).toEqual(Float32Array.of(1, 1, 2, 3, 4));
  });

  it('refuses data of another type', async () => {
    const cpu = await openCpu();
    const half = cpu.allocate(2, 'f16');
    expect(() => cpu.write(half, Float32Array.of(1, 2))).toThrow(
      new DTypeError(
        'write: data of f16 must be a Uint16Array, got Float32Array',
      ),
    );
    expect(() => cpu.copy(half, 0, cpu.allocate(2, 'f32'), 0, 2)).toThrow(
      DTypeError,
    );
  });

  it.each([
    [3, 2],
    [-1, 1],
    [Number.NaN, 1],
  ])('refuses to go outside: %s + %s', async (offset, length) => {
    const cpu = await openCpu();
    const [a, b] = [cpu.allocate(4, 'f32'), cpu.allocate(9, 'f32')];
    expect(() => cpu.write(a, new Float32Array(length), offset)).toThrow(
      ArgumentError,
    );
    expect(() => cpu.copy(a, offset, b, 0, length)).toThrow(ArgumentError);
    expect(() => cpu.copy(b, 0, a, offset, length)).toThrow(ArgumentError);
  });
});

describe('states', () => {
  it('throws after destroy, but for clean-up', async () => {
    const cpu = await openCpu();
    const scope = new Scope(cpu);
    const x = scope.tensor(Float32Array.of(1), [1], 'f32');
    await cpu.destroy();
    expect(() => cpu.allocate(1, 'f32')).toThrow(TensorStateError);
    expect(() => cpu.write(x.storage, Float32Array.of(1))).toThrow(
      TensorStateError,
    );
    expect(() => cpu.copy(x.storage, 0, x.storage, 0, 1)).toThrow(
      TensorStateError,
    );
    expect(() => cpu.supports('add', {}, {})).toThrow(TensorStateError);
    expect(() => cpu.kernels).toThrow(TensorStateError);
    expect(() => cpu.memory()).toThrow(TensorStateError);
    expect(() => cpu.flush()).toThrow(TensorStateError);
    expect(() => scope.run(operators.add, { a: x, b: x }, {})).toThrow(
      TensorStateError,
    );
    await expect(scope.read(x)).rejects.toThrow(TensorStateError);
    await expect(cpu.synchronize()).rejects.toThrow(TensorStateError);
    scope.free();
    await cpu.destroy();
  });

  it('throws for freed and foreign storage', async () => {
    const cpu = await openCpu();
    const storage = cpu.allocate(1, 'f32');
    cpu.free(storage);
    await expect(cpu.read(storage)).rejects.toThrow(TensorStateError);
    await expect(cpu.read({})).rejects.toThrow(TensorStateError);
  });

  it('runs every operator of the table', async () => {
    const cpu = await openCpu();
    for (const name of Object.keys(operators) as (keyof typeof operators)[]) {
      expect([name, cpu.supports(name, {}, {})]).toEqual([name, true]);
    }
  });

  it('gives everything back over 1,000 lives', async () => {
    for (let life = 0; life < 1000; life++) {
      const cpu = await openCpu();
      const scope = new Scope(cpu);
      const x = scope.tensor(Float32Array.of(life, 1), [2], 'f32');
      const { y } = scope.run(operators.add, { a: x, b: x }, {});
      expect((await scope.read(y))[0]).toBe(2 * life);
      scope.free();
      expect(cpu.memory().bytesInUse).toBe(0);
      await cpu.destroy();
    }
  });
});
