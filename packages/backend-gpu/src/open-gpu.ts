import { ArgumentError, type Backend, UnsupportedError } from '@asa/core';

export interface GpuOptions {
  /** Bytes that device buffers may take; what the device gives when missing. */
  readonly limitBytes?: number;
  /** New memory holds NaN (-2^31 in i32), so that tests see it being read. */
  readonly poison?: boolean;
  /** Drivers to try, in this order; all when left out. */
  readonly drivers?: readonly GpuDriverName[];
  /** Told of each driver that was passed over, and why. */
  readonly onPassedOver?: (driver: GpuDriverName, reason: string) => void;
}

type DriverOptions = Pick<GpuOptions, 'limitBytes' | 'poison'>;

/** Best first. A driver's code is read when its turn comes. */
const drivers = {
  webgpu: async (options: DriverOptions): Promise<Backend> => {
    const { openWebGpu } = await import('./webgpu');
    return openWebGpu({ ...options, hardwareOnly: true });
  },
} as const;

export type GpuDriverName = keyof typeof drivers;

/** The drivers there are, in the order in which `openGpu` tries them. */
export const gpuDrivers = Object.keys(drivers) as readonly GpuDriverName[];

/**
 * Opens the first driver that finds a GPU and computes a known product right.
 * Adapters that compute on the CPU are passed over.
 * @throws UnsupportedError with what every driver says; ArgumentError for an
 * unknown driver or a limit that is no number.
 */
export async function openGpu({
  drivers: order = gpuDrivers,
  onPassedOver,
  ...options
}: GpuOptions = {}): Promise<Backend> {
  const reasons: string[] = [];
  for (const name of order) {
    try {
      return await driver(name)(options);
    } catch (error) {
      if (error instanceof ArgumentError) throw error;
      const reason = reasonOf(error);
      onPassedOver?.(name, reason);
      reasons.push(`${name}: ${reason}`);
    }
  }
  const all = reasons.join('; ') || 'no driver was asked for';
  throw new UnsupportedError('open', 'gpu', all);
}

function driver(name: GpuDriverName): (typeof drivers)[GpuDriverName] {
  if (Object.hasOwn(drivers, name)) return drivers[name];
  throw new ArgumentError(
    `openGpu: a driver must be one of ${gpuDrivers.join(', ')}, got ${name}`,
  );
}

function reasonOf(error: unknown): string {
  if (error instanceof UnsupportedError) return error.reason;
  return error instanceof Error ? error.message : String(error);
}
