import { z } from 'zod';
import { ArgumentError } from '../errors';

/** One turn of a conversation. */
export interface ChatMessage {
  /** `system`, `user`, `assistant`, or what else the template knows. */
  readonly role: string;
  readonly content: string;
}

/**
 * Renders Jinja templates. A template comes with a model folder, so it is
 * somebody else's program: a runner gives it a deadline and keeps it from the
 * memory of the process.
 */
export interface TemplateRunner {
  /**
   * @param template Jinja source.
   * @param variables what the template may read; plain data.
   * @param path the file that errors name.
   * @throws ConfigError if the template does not parse, fails, is not done by
   *   the deadline, or writes too much.
   */
  render(
    template: string,
    variables: Readonly<Record<string, unknown>>,
    path: string,
  ): Promise<string>;
}

/** What a chat template needs beside the messages. */
export interface RenderChatOptions {
  readonly runner: TemplateRunner;
  /** End with the header of an assistant's turn. Default true. */
  readonly addGenerationPrompt?: boolean;
  /** The text of the start token. Default `''`. */
  readonly bosToken?: string;
  /** The text of the end token. Default `''`. */
  readonly eosToken?: string;
  /** The file that errors name. Default `tokenizer_config.json`. */
  readonly path?: string;
}

const MESSAGES = z
  .array(z.object({ role: z.string().min(1), content: z.string() }))
  .min(1);

/**
 * Writes a conversation as the text that the model was trained on. The text
 * already holds the start token: encode it without special tokens.
 *
 * @throws ArgumentError if the messages are not messages.
 * @throws ConfigError if the template fails; see {@link TemplateRunner}.
 */
export async function renderChat(
  template: string,
  messages: readonly ChatMessage[],
  options: RenderChatOptions,
): Promise<string> {
  const checked = MESSAGES.safeParse(messages);
  if (!checked.success) {
    throw new ArgumentError(
      `renderChat: messages must be a non-empty list of { role, content }: ${z.prettifyError(checked.error)}`,
    );
  }
  const variables = {
    messages: checked.data,
    add_generation_prompt: options.addGenerationPrompt ?? true,
    bos_token: options.bosToken ?? '',
    eos_token: options.eosToken ?? '',
  };
  const path = options.path ?? 'tokenizer_config.json';
  return options.runner.render(template, variables, path);
}
